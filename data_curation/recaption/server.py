"""Inference servers of our own: each worker starts its replicas, has them restarted when they die, and ends them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from megavlm.platform.config import Config
from megavlm.platform.errors import ConfigError, MegaVLMError

from .keeper import GRACE_SECONDS

GPUS = "CUDA_VISIBLE_DEVICES"
SHOWN = 2000  # characters of a dead server's log that are told


class Server(Config):
    """A command that serves an OpenAI-compatible API, such as [vllm, serve, "{model}", --port, "{port}"].

    It is an argument list and goes through no shell. {port}, {gpus} and {model} in an argument are filled in. Each
    replica sees `gpus` GPUs of its own of those that the worker sees; so on one machine let one worker have them all
    (curation.executor.workers: 1), or give each its own.
    """

    command: tuple[str, ...]
    gpus: NonNegativeInt = 1  # per replica; 0 leaves the choice of devices to the command
    replicas: PositiveInt = 1  # servers side by side, asked in turn
    port: NonNegativeInt = 0  # of the first replica, the others count on from it; 0: any that is free
    api: str = "/v1"  # where the API is, after http://127.0.0.1:{port}
    health: str = "/health"  # answers once the model is loaded
    start_seconds: PositiveFloat = 900.0  # from start to health
    restarts: NonNegativeInt = 3  # of one replica

    @field_validator("command")
    @classmethod
    def _tells_its_port(cls, command: tuple[str, ...]) -> tuple[str, ...]:
        if not any("{port}" in part for part in command):
            fix = '[vllm, serve, "{model}", --port, "{port}"]'
            raise ConfigError("the server's command does not say {port}", where="command", fix=fix)
        return command

    def lacks(self) -> str | None:
        """The command, or GPUs for the replicas."""
        if shutil.which(self.command[0]) is None:
            return f"the command '{self.command[0]}' is not installed here"
        try:
            _shares(self.gpus, self.replicas)
        except ConfigError as error:
            return error.what
        return None

    def start(self, model: str, logs: Path, name: str) -> list[Replica]:
        """The replicas, which start when they are first asked for health; their logs are LOGS/NAME-N.log.

        Raises ConfigError when the worker sees too few GPUs.
        """
        shares = _shares(self.gpus, self.replicas)
        return [
            Replica(self, model, number, logs / f"{name}-{number}.log", shares[number])
            for number in range(self.replicas)
        ]


@dataclasses.dataclass
class Replica:
    """One server process, as a pool's Place."""

    server: Server
    model: str
    number: int
    log: Path
    devices: Sequence[str]
    starts: int = 0
    _port: int = 0
    _process: subprocess.Popen[bytes] | None = None

    def url(self) -> str:
        """Another one after a restart, unless the recipe fixes the port."""
        return f"http://127.0.0.1:{self._port}{self.server.api}"

    def revive(self) -> None:
        """Start the server if it does not run; raises MegaVLMError when it has died too often, or cannot be started."""
        if self._process is not None and self._process.poll() is None:
            return
        if self.starts > self.server.restarts:
            raise MegaVLMError(
                f"{self} died {self.starts} times; the end of its log:\n{self._tail()}", where=str(self.log)
            )
        if self.starts:
            print(f"{self} ended, starting it again; its log: {self.log}", file=sys.stderr, flush=True)
        self.starts += 1
        self._port = self.server.port + self.number if self.server.port else free_port()
        self._process = self._start()

    def stop(self) -> None:
        """End it and whatever it has started; nothing happens when it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # the keeper's sign
        try:
            process.wait(GRACE_SECONDS + 5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __str__(self) -> str:
        return f"server replica {self.number}"

    def _start(self) -> subprocess.Popen[bytes]:
        filled = {"{port}": str(self._port), "{gpus}": str(self.server.gpus), "{model}": self.model}
        command = [_fill(part, filled) for part in self.server.command]
        environment = {**os.environ, **({GPUS: ",".join(self.devices)} if self.devices else {})}
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "megavlm.data_curation.recaption.keeper", *command],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-SHOWN:] if self.log.exists() else ""


def stop_all(replicas: Sequence[Replica]) -> None:
    """End them one after the other."""
    for replica in replicas:
        replica.stop()


def _fill(argument: str, filled: dict[str, str]) -> str:
    """Not str.format: arguments may be JSON, full of braces."""
    for mark, value in filled.items():
        argument = argument.replace(mark, value)
    return argument


def _shares(gpus: int, replicas: int) -> list[list[str]]:
    """Each replica's devices, from those that $CUDA_VISIBLE_DEVICES lists or else by number."""
    told = os.environ.get(GPUS)
    visible = told.split(",") if told else [str(number) for number in range(gpus * replicas)]
    if len(visible) < gpus * replicas:
        what = f"{replicas} replicas of {gpus} GPUs each, and {GPUS} lists {len(visible)}"
        raise ConfigError(what, where="server", fix="lower gpus or replicas")
    return [visible[number * gpus : (number + 1) * gpus] for number in range(replicas)]


def free_port() -> int:
    """A TCP port of this machine that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
