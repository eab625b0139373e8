"""A training that is killed and given again; what each kill struck, and what it left. For training_kills.py."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from megavlm.megatron_mm.checkpoints.listing import COMPLETE, latest, step_of
from megavlm.platform.runs import Attempt, RunFolder

BETWEEN_SECONDS = 1.5  # a kill between saves comes at most so long after the attempt's first step
PATIENCE_SECONDS = 300.0
STAGE = "sft"


class Failed(Exception):
    """A resume that was none, and why."""


class Strike(NamedTuple):
    """One kill: what it was aimed at and whom it hit; where that was; and what the attempt had done by then."""

    way: str
    aim: str
    victim: str
    where: str
    from_step: int | None  # None where it had not come so far
    step: int
    outlived: int  # processes that were there half a minute later

    @property
    def in_save(self) -> bool:
        """Whether it left half a checkpoint."""
        return self.where.startswith("save")


def descendants(root: int) -> list[int]:
    """`root` and every process below it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [root]
    for pid in found:  # grows as it is walked
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def alive(pid: int) -> bool:
    """Whether it still runs; what is dead and not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Broken:
    """A run that is killed and goes on with the same command, `words`."""

    def __init__(self, words: Sequence[str], out: Path, way: str, draw: random.Random) -> None:
        self.words, self.run, self.way, self.draw = words, RunFolder(out), way, draw
        self.lasting = 0.3  # seconds of a save, as far as is known

    @property
    def attempt(self) -> Attempt:
        """The newest."""
        return self.run.attempts()[-1]

    def strike(self, aim: str, victim: str) -> Strike | None:
        """Start it and kill it; None when it came to its end before that."""
        newest = latest(self.run, STAGE) if self.run.root.exists() else None
        before, begun = len(self.run.attempts()), time.time()
        log = (self.run.root.parent / f"{self.run.root.name}.log").open("ab")
        with log, subprocess.Popen(self.words, stdout=log, stderr=log) as process:
            alright = all(self._wait(process, until) for until in self._moments(aim, before))
            if not alright or process.poll() is not None:
                self._ended(process)
                return None
            there = descendants(process.pid)
            self._kill(process, victim, there)
            process.wait(timeout=PATIENCE_SECONDS)
        outlived = self._outlived(there)
        return self._told(aim, victim, newest, before, begun, outlived)

    def _moments(self, aim: str, before: int) -> Iterator[Callable[[], bool]]:
        """What is waited for, one after the other, the last being the instant."""
        if aim == "any":
            yield self._after(self.draw.uniform(0, self._usual_start() + BETWEEN_SECONDS))
            return
        yield lambda: len(self.run.attempts()) > before and bool(self._events("engine"))
        if aim == "step":
            yield lambda: any(beat["doing"] == "step" for beat in self.attempt.heartbeats())
            yield self._after(self.draw.uniform(0, BETWEEN_SECONDS))
            return
        for _ in range(self.draw.randint(1, 3)):
            yield lambda: self._doing() != "save"
            yield lambda: self._doing() == "save"
        with contextlib.suppress(statistics.StatisticsError):
            self.lasting = statistics.median(event["written"] for event in self._events("saved"))
        yield self._after(self.draw.uniform(0, self.lasting / 2))

    def _after(self, seconds: float) -> Callable[[], bool]:
        end: list[float] = []

        def over() -> bool:  # counted from when it is first asked
            if not end:
                end.append(time.monotonic() + seconds)
            return time.monotonic() >= end[0]

        return over

    def _usual_start(self) -> float:
        """Seconds from an attempt's start to its first step."""
        spans = []
        for attempt in self.run.attempts() if self.run.root.exists() else []:
            times = {event["kind"]: event["time"] for event in reversed(attempt.events())}
            if "engine" in times and "started" in times:
                spans.append(times["engine"] - times["started"])
        return statistics.median(spans) if spans else 10.0

    def _doing(self) -> str:
        return next((beat["doing"] for beat in self.attempt.heartbeats() if beat["rank"] == 0), "")

    def _events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.attempt.events() if event["kind"] == kind]

    def _wait(self, process: subprocess.Popen[bytes], until: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not until():
            if process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                process.kill()
                raise Failed("nothing happened for minutes")
            time.sleep(0.004)
        return True

    def _kill(self, process: subprocess.Popen[bytes], victim: str, there: list[int]) -> None:
        ranks = [beat["pid"] for beat in self.attempt.heartbeats()] if self.run.attempts() else []
        ranks = [pid for pid in ranks if pid in there]
        whom = {"command": [process.pid], "everything": there, "rank": [self.draw.choice(ranks or there)]}[victim]
        for pid in whom:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if victim == "rank" and not ranks:  # it was too early for one
            process.kill()

    def _ended(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        if process.returncode:
            raise Failed(f"a resume ended with exit code {process.returncode}")

    def _outlived(self, there: list[int]) -> int:
        deadline = time.monotonic() + 30
        while any(alive(pid) for pid in there) and time.monotonic() < deadline:
            time.sleep(0.02)
        return sum(alive(pid) for pid in there)

    def _told(
        self, aim: str, victim: str, newest: Path | None, before: int, begun: float, outlived: int
    ) -> Strike | None:
        if len(self.run.attempts()) == before:
            return Strike(self.way, aim, victim, "before the attempt", None, 0, outlived)
        engine = self._events("engine")
        if engine and engine[0]["from_step"] != (step_of(newest) if newest else 0):
            raise Failed(f"it went on from step {engine[0]['from_step']} instead of {newest}")
        step = max((beat["step"] for beat in self.attempt.heartbeats()), default=0)
        at = engine[0]["from_step"] if engine else None
        return Strike(self.way, aim, victim, self._where(begun, bool(engine)), at, step, outlived)

    def _where(self, begun: float, trained: bool) -> str:
        """What the dead left: a save of this attempt without its marker, or none."""
        if not trained:
            return "start-up"
        for folder in self.run.path("checkpoints", STAGE).glob("step-*"):
            files = {path.name for path in folder.iterdir()}
            if COMPLETE in files or folder.stat().st_mtime < begun:
                continue
            if ".metadata" in files:
                return "save, index written"
            sizes = [path.stat().st_size for path in folder.glob("*.distcp")]
            return "save, tensors being written" if sizes else "save, planning"
        return "between saves"

    def finish(self) -> None:
        """Let it come to its end."""
        with subprocess.Popen(self.words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            self._ended(process)
