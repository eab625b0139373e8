"""A real Slurm that is up in a second and gone without a trace: its controller, its nodes, and what befalls them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from .accounting import Accounting
from .client import Client
from .configuration import write_configuration
from .containers import write_plug_in
from .daemons import Daemons, free_ports, listens, wait_for
from .network import Network
from .nodes import NamespacedNodes, Nodes, SharedNodes, kill_jobs

GUARD = Path(__file__).with_name("__main__.py")


class Cluster(Client):
    """`nodes` nodes of 8 CPUs and 8 GPUs that only Slurm believes in.

    folder: everything the daemons write; shared: a folder that every node sees; small_disk: one of 3 MB, or None where
    not root; netns: whether nodes have a network, host name and processes of their own.
    """

    def __init__(self, folder: Path, nodes: int = 4, netns: bool | None = None) -> None:
        super().__init__({"SLURM_CONF": str(folder / "slurm.conf")}, folder / "shared")
        self.folder, self.netns = folder, os.geteuid() == 0 if netns is None else netns
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self.small_disk = folder / "small" if os.geteuid() == 0 else None
        self._daemons = Daemons(folder)
        self._guard: subprocess.Popen[bytes] | None = None
        self._gone: set[str] = set()
        self._throttled: set[str] = set()

    def up(self, accounting: bool = False, containers: bool = False, guarded: bool = True) -> None:
        """Return when every node is idle; raises RuntimeError with the ends of all logs when that does not come.

        `accounting` adds slurmdbd, `containers` the options of a container plug-in. `guarded`: it goes down with this
        process, however that ends.
        """
        try:
            self._up(accounting, containers, guarded)
        except Exception as error:
            told = f"no Slurm: {error}\n{self._daemons.tail()}"
            self.down()
            raise RuntimeError(told) from error

    def _up(self, accounting: bool, containers: bool, guarded: bool) -> None:
        self.shared.mkdir(parents=True, exist_ok=True)
        if guarded:
            words = [sys.executable, str(GUARD), "guard", "--dir", str(self.folder)]
            self._guard = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)
        if self.small_disk is not None:
            self.small_disk.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", self.small_disk], check=True)
        self._start_munge()
        self._nodes, self._address, self._port = self._make_nodes()
        if containers:
            write_plug_in(self.folder)
        books = Accounting(self.folder, self._address, self._daemons) if accounting else None
        further = books.settings() if books else ""
        write_configuration(self.folder, self._address, self._port, self._nodes.places(), further)
        if books:
            books.start(self.environment)
        self.start_controller()
        self._nodes.start(self.nodes, self.environment)
        self.wait_idle()

    def _make_nodes(self) -> tuple[Nodes, str, int]:
        controller, *ports = free_ports(1 + len(self.nodes))
        if not self.netns:
            return SharedNodes(self.folder, self.nodes, self._daemons, ports), "127.0.0.1", controller
        network = Network.make(self.folder)
        nodes = NamespacedNodes(self.folder, self.nodes, self._daemons, network, ports[0])
        nodes.prepare()
        return nodes, network.gateway, controller

    def _start_munge(self) -> None:
        """Its own key and socket, so that neither the machine's Slurm nor another of ours takes part."""
        key, socket = self.folder / "munge.key", self.folder / "munge.sock"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        files = {"pid-file": "munged.pid", "log-file": "log/munged.log", "seed-file": "munged.seed"}
        places = [f"--{option}={self.folder / name}" for option, name in files.items()]
        self._daemons.start("munged", "munged", "-F", "--force", f"--key-file={key}", f"--socket={socket}", *places)
        wait_for(socket.exists, 10, "munged")

    def down(self) -> None:
        """End everything and delete the folder."""
        self._daemons.kill_all()
        remove(self.folder)
        if self._guard is not None:
            self._guard.communicate()
            self._guard = None

    def kill_node(self, name: str, silent: bool = True) -> None:
        """Pull its power. `silent`: its connections are not closed, so that who talks with it waits on."""
        self._nodes.kill(name, silent)
        self._gone.add(name)

    def start_node(self, name: str) -> None:
        """Power is back; returns when Slurm would give it work again."""
        self._nodes.start([name], self.environment)
        place = next(place for place in self._nodes.places() if place.name == name)
        wait_for(lambda: listens(place.address, place.port), 20, f"slurmd of {name}")
        wait_for(lambda: not re.search(r"DOWN|\*|NOT_RESP", self.node(name)["State"]), 20, f"{name} to be back")
        self._gone.discard(name)

    def kill_controller(self) -> None:
        """kill -9 slurmctld, once its files hold what it knows; jobs run on.

        It writes them up to five seconds late, and starts a job again whose start it forgot.
        """
        path, now = self.folder / "state" / "job_state", time.time()
        with contextlib.suppress(TimeoutError):  # then there was nothing new to write
            wait_for(lambda: path.exists() and path.stat().st_mtime > now, 5.5, "slurmctld's state")
        self._daemons.kill("slurmctld")

    def start_controller(self) -> None:
        """Start slurmctld with the state it left; returns when it answers."""
        self._daemons.start("slurmctld", "slurmctld", "-D", environment=self.environment)
        wait_for(lambda: listens(self._address, self._port), 20, "slurmctld")

    def exec(self, name: str, *words: str, seconds: float = 60) -> str:
        """Standard output of a command run inside a node; raises CalledProcessError."""
        return self.run(*self.inside(name, *words), seconds=seconds)

    def inside(self, name: str, *words: str) -> list[str]:
        """The words that run `words` inside a node, for who wants to start them and not wait."""
        return self._nodes.command(name, words)

    def throttle(self, name: str, mbit: float) -> None:
        """Let through no more than `mbit` Mbit/s, in each direction. Where not root: NotImplementedError."""
        self._nodes.throttle(name, mbit)
        self._throttled.add(name)

    def unthrottle(self, name: str) -> None:
        """The opposite."""
        self._nodes.throttle(name, None)
        self._throttled.discard(name)

    def clear(self) -> None:
        """As good as new for the next test: no job, every node there, none throttled, drained or down."""
        self.run("scancel", "--user", str(os.geteuid()))
        for name in sorted(self._gone):
            self.start_node(name)
        for name in sorted(self._throttled):
            self.unthrottle(name)
        for name in self.nodes:
            if re.search("DRAIN|DOWN", self.node(name)["State"]):
                self.run("scontrol", "update", f"nodename={name}", "state=resume")
        self.wait_idle()


def remove(folder: Path) -> None:
    """Take down the cluster in `folder`, whoever started it; what is gone already is no error."""
    Daemons(folder).kill_all()
    kill_jobs(folder)
    Network.remove(folder)
    if (folder / "small").is_mount():
        subprocess.run(["umount", folder / "small"], check=True)
    shutil.rmtree(folder, ignore_errors=True)
