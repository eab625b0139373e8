"""Daemons in the foreground, each with a file that names its process, so that anyone can end them later."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path


class Daemons:
    """Processes started from one folder: their output in log/NAME.out, their ids in pid/NAME."""

    def __init__(self, folder: Path) -> None:
        self._pids, self._logs = folder / "pid", folder / "log"
        self._children: dict[str, subprocess.Popen[str]] = {}

    def start(
        self, name: str, *words: str, environment: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.Popen[str]:
        """Start one in a session of its own: a Ctrl-C on the tests must not reach it before they take it down."""
        for folder in (self._pids, self._logs):
            folder.mkdir(parents=True, exist_ok=True)
        with (self._logs / f"{name}.out").open("a") as out:
            child = subprocess.Popen(
                [program(words[0]) or words[0], *words[1:]],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                text=True,
                cwd=cwd,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        (self._pids / name).write_text(f"{child.pid} {_started(child.pid)}")
        self._children[name] = child
        return child

    def pid(self, name: str) -> int | None:
        """The process id while it runs. Whether the id still means our process is told by when it started."""
        path = self._pids / name
        if not path.exists():
            return None
        number, started = path.read_text().split()
        return int(number) if _started(int(number)) == started else None

    def kill(self, name: str) -> None:
        """kill -9, and wait until it is gone."""
        pid = self.pid(name)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: self._gone(name), 10, f"the end of {name}")
        if child := self._children.pop(name, None):
            child.communicate()
        (self._pids / name).unlink(missing_ok=True)

    def kill_all(self) -> None:
        """The same with every one of them."""
        for name in self.names():
            self.kill(name)

    def names(self) -> list[str]:
        """Every daemon that was started and not ended by us."""
        return sorted(path.name for path in self._pids.glob("*"))

    def tail(self, lines: int = 15) -> str:
        """The last lines of every log, for the message of a failed start."""
        parts = []
        for path in sorted(self._logs.glob("*")):
            parts += [f"== {path.name}", *path.read_text(errors="replace").splitlines()[-lines:]]
        return "\n".join(parts)

    def _gone(self, name: str) -> bool:
        if child := self._children.get(name):
            return child.poll() is not None
        return self.pid(name) is None


def program(name: str) -> str | None:
    """Where a command is. Daemons lie in sbin, which an ordinary user's PATH may not name."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot; "" when it is gone, or dead and only not yet waited for."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if state in "ZX" else rest[18]


def wait_for(condition: Callable[[], object], seconds: float, what: str, every: float = 0.02) -> None:
    """Look until it is so; raises TimeoutError naming `what`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(every)


def free_ports(count: int) -> list[int]:
    """`count` ports in a row that nobody listens on, below those which the kernel gives to outgoing connections."""
    for first in random.SystemRandom().sample(range(20000, 30000), 200):
        ports = list(range(first, first + count))
        if all(_free(port) for port in ports):
            return ports
    raise RuntimeError("no free ports between 20000 and 30000")


def _free(port: int) -> bool:
    with socket.socket() as one:
        try:
            one.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


def listens(host: str, port: int) -> bool:
    """Whether somebody answers there."""
    with socket.socket() as one:
        one.settimeout(1)
        return one.connect_ex((host, port)) == 0
