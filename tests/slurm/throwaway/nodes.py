"""The nodes of a throw-away cluster: machines of their own as far as namespaces go, or daemons under one host name."""

from __future__ import annotations

import functools
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from .configuration import NodePlace, host_name
from .daemons import Daemons, wait_for
from .network import Network

NAMESPACES = ("--net", "--uts", "--ipc", "--mount", "--pid")
# Runs as process 1 of a node. The shell stays it: it waits for orphans as an init does, which slurmd does not. The
# host names come from files alone, since every question to a name server that is out of reach takes seconds.
BOOT = """\
read -r plugged
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/nsswitch.conf /etc/nsswitch.conf
hostname {name}
ip -batch {folder}/{name}.ip
slurmd -D -N {name} &
wait $!
"""


class Nodes(Protocol):
    """How a cluster starts and ends its nodes."""

    names: list[str]

    def places(self) -> list[NodePlace]: ...
    def start(self, names: Sequence[str], environment: Mapping[str, str]) -> None: ...
    def kill(self, name: str, silent: bool) -> None: ...
    def command(self, name: str, words: Sequence[str]) -> list[str]: ...
    def throttle(self, name: str, mbit: float | None) -> None: ...


class NamespacedNodes:
    """One set of namespaces per node: own address, host name and processes; killing one process cuts its power."""

    def __init__(self, folder: Path, names: list[str], daemons: Daemons, network: Network, port: int) -> None:
        self.names, self._folder, self._daemons, self._network, self._port = names, folder, daemons, network, port

    def places(self) -> list[NodePlace]:
        """Every node under its own address, all on one port."""
        return [NodePlace(name, self._network.address(name), name, self._port) for name in self.names]

    def prepare(self) -> None:
        """The files that stand in for a node's /etc, and its network set-up."""
        hosts = [f"{self._network.gateway} {host_name()}", "127.0.0.1 localhost"]
        hosts += [f"{self._network.address(name)} {name}" for name in self.names]
        (self._folder / "hosts").write_text("\n".join(hosts) + "\n")
        sources = ("passwd", "group", "shadow", "hosts", "services", "protocols")
        (self._folder / "nsswitch.conf").write_text("".join(f"{source}: files\n" for source in sources))
        for name in self.names:
            (self._folder / f"{name}.ip").write_text(self._network.inside(name))

    def start(self, names: Sequence[str], environment: Mapping[str, str]) -> None:
        """Boot them, all at once: each waits for its cable before it goes on."""
        booting = {}
        for name in names:
            script = BOOT.format(folder=self._folder, name=name)
            words = ("unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc", "sh", "-ec", script)
            booting[name] = self._daemons.start(name, *words, environment=environment)
        for name, process in booting.items():
            wait_for(functools.partial(self._first_process, name), 10, f"node {name}")
            self._network.plug(name, self._first_process(name))
            assert process.stdin is not None
            process.stdin.write("plugged\n")
            process.stdin.flush()

    def kill(self, name: str, silent: bool) -> None:
        """`silent`: the cable goes first, so that the dying kernel closes no connection and the others wait on."""
        if silent:
            self._network.unplug(name)
        self._daemons.kill(name)
        self._network.unplug(name)

    def command(self, name: str, words: Sequence[str]) -> list[str]:
        """`words`, to be run inside the node."""
        return ["nsenter", "--target", str(self._first_process(name)), *NAMESPACES, "--wd=/", "--", *words]

    def throttle(self, name: str, mbit: float | None) -> None:
        """Shape what comes and what goes; None lets go."""
        self._network.shape(name, self.command(name, []), mbit)

    def _first_process(self, name: str) -> int | None:
        """Process 1 of the node as the machine outside numbers it."""
        pid = self._daemons.pid(name)
        if pid is None:
            return None
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if children else None


class SharedNodes:
    """Several slurmd on one machine, told apart by their ports: what an ordinary user can start."""

    def __init__(self, folder: Path, names: list[str], daemons: Daemons, ports: list[int]) -> None:
        self.names, self._folder, self._daemons = names, folder, daemons
        self._ports = dict(zip(names, ports, strict=True))

    def places(self) -> list[NodePlace]:
        """All at the same address."""
        return [NodePlace(name, "127.0.0.1", socket.gethostname(), port) for name, port in self._ports.items()]

    def start(self, names: Sequence[str], environment: Mapping[str, str]) -> None:
        """One daemon per node; its name in the environment marks what it starts, as Slurm does with jobs."""
        for name in names:
            mark = {"SLURMD_NODENAME": name}
            self._daemons.start(name, "slurmd", "-D", "-N", name, environment={**environment, **mark})

    def kill(self, name: str, silent: bool) -> None:
        """The daemon, and whatever of its jobs runs: that belongs to no process group or session of the daemon's."""
        self._daemons.kill(name)
        kill_jobs(self._folder, name)

    def command(self, name: str, words: Sequence[str]) -> list[str]:
        """`words` as they are, with the node's name where Slurm's daemons put it."""
        return ["env", f"SLURMD_NODENAME={name}", *words]

    def throttle(self, name: str, mbit: float | None) -> None:
        """There is no network to throttle."""
        raise NotImplementedError("only nodes in namespaces of their own can be throttled: run the tests as root")


def kill_jobs(folder: Path, node: str | None = None) -> None:
    """kill -9 what the nodes of the cluster in `folder`, or only `node`, started on this machine, the oldest first."""
    for pid in sorted(int(path.name) for path in Path("/proc").glob("[0-9]*")):
        try:
            text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
        except OSError:  # it is gone, or somebody else's
            continue
        words = dict(word.partition("=")[::2] for word in text.split("\0"))
        ours = words.get("SLURM_CONF") == f"{folder}/slurm.conf" and "SLURMD_NODENAME" in words
        if ours and node in {None, words["SLURMD_NODENAME"]}:
            os.kill(pid, signal.SIGKILL)
