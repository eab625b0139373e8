"""Curations that are killed with SIGKILL: start one, strike it, see where that was, and compare what it ends in."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from megavlm.data_curation.ledger import Ledger
from megavlm.platform.runs.lines import read_lines

KINDS = ("driver", "worker", "all")
# The driver's own records: when it was started, how long things took, who was asked when.
OWN = {"attempts", "ledger", "config.yaml", "provenance.json", "metrics.jsonl", "finished", "saved"}
POLL_SECONDS = 0.002
LONGEST = 900.0  # seconds that one start of the command may take


class Place(NamedTuple):
    """How far a run was: the stage that was begun last, and how many of its tasks were marked as done."""

    stage: str
    done: int


@dataclasses.dataclass(frozen=True)
class Victim:
    """A run folder and the command that brings it to its end."""

    recipe: Path
    folder: Path
    log: Path

    def start(self) -> psutil.Popen:
        """The command, from wherever the run stands."""
        command = [sys.executable, "-m", "megavlm.platform.cli", "curate", "run", str(self.recipe)]
        with self.log.open("ab") as out:
            return psutil.Popen([*command, "--out", str(self.folder)], stdout=out, stderr=subprocess.STDOUT)

    def finish(self) -> None:
        """Run to the end; raises RuntimeError when it does not come to that."""
        if self.start().wait(LONGEST) != 0:
            raise RuntimeError(f"{self.folder} does not come to its end; see {self.log}")

    def attempts(self) -> int:
        """The number of the last one: how often it was started, as far as it got to say so."""
        return max((int(path.name) for path in self.folder.glob("attempts/*")), default=0)

    def stages(self, attempt: int) -> list[str]:
        """The stages that an attempt has begun, newest last."""
        path = self.folder / "attempts" / f"{attempt:02d}" / "events.jsonl"
        return [event["name"] for event in (read_lines(path) if path.exists() else []) if event["kind"] == "stage"]

    def place(self, attempt: int) -> Place:
        """Where an attempt is."""
        if not (stages := self.stages(attempt)):
            return Place("start", 0)
        lines = Ledger(self.folder / "ledger").state(stages[-1]).values()
        return Place(stages[-1], sum(line.fingerprint is not None for line in lines))


def strike(process: psutil.Popen, kind: str) -> bool:
    """Kill a command's driver, one of its workers, or both with all that they started; False when it ended before."""
    if kind == "worker":
        return _strike_worker(process)
    for one in [process, *(children(process) if kind == "all" else [])]:
        _kill(one)
    return int(process.wait()) == -signal.SIGKILL


def _strike_worker(process: psutil.Popen) -> bool:
    """Between two stages there is none: the next one is waited for."""
    while process.poll() is None:
        workers = [one for one in children(process) if "megavlm.platform.executor.child" in _words(one)]
        if workers and _kill(workers[process.pid % len(workers)]):
            return True
        time.sleep(POLL_SECONDS)
    return False


def children(process: psutil.Popen) -> list[psutil.Process]:
    """Whatever a command has started and runs."""
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _kill(process: psutil.Process) -> bool:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def until(condition: Callable[[], bool], process: psutil.Popen) -> bool:
    """Wait for something while a command runs; whether it came about."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(POLL_SECONDS)
    return False


def run_files(run: Path) -> dict[str, str]:
    """Name -> SHA-256 of everything in a run folder but the driver's own records; without seconds, and as a set where
    a file's lines come in the order of whoever was first."""
    found = dict(_plain_files(run))
    found["funnel.json"] = _hash(json.dumps(_without_seconds(json.loads((run / "funnel.json").read_text()))).encode())
    replies = {line for path in run.glob("cache/*/*.jsonl") for line in path.read_bytes().splitlines()}
    return found | {"cache": _hash(b"\n".join(sorted(line for line in replies if line.endswith(b"}"))))}


def _plain_files(run: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run)
        # what a killed writer leaves beside its target is hidden and belongs to no result
        if path.is_file() and name.parts[0] not in OWN | {"cache", "funnel.json"} and not hidden(name):
            yield str(name), _hash(path.read_bytes())


def hidden(name: Path) -> bool:
    """Whether a path in a run folder is of something that its writer has not finished."""
    return any(part.startswith(".") for part in name.parts)


def unfinished(run: Path) -> list[Path]:
    """What killed writers have left."""
    return [path for path in run.rglob("*") if path.is_file() and hidden(path.relative_to(run))]


def _without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_seconds(item) for key, item in value.items() if key != "seconds"}
    return [_without_seconds(item) for item in value] if isinstance(value, list) else value


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
