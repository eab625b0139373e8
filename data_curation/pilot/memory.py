"""The peak memory of a run's processes, stage by stage, as the kernel counts it (Linux; elsewhere nothing is known)."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator

from megavlm.platform.processes import PROC, resident
from megavlm.platform.runs import RunFolder


@dataclasses.dataclass
class Peak:
    """Bytes: of the driver, of the largest worker with all that it started, and of all processes at one time.

    A run without worker processes is its own worker.
    """

    driver: int = 0
    worker: int = 0
    together: int = 0


@dataclasses.dataclass
class MemoryWatch:
    """Asked every few hundredths of a second while process `driver` drives the run."""

    driver: int
    folder: RunFolder
    peaks: dict[str, Peak] = dataclasses.field(default_factory=dict)
    _stage: str = ""
    _seen: int = 0

    def look(self) -> None:
        """Note how much memory is in use, and at the most since the last look."""
        now, driver = resident(self.driver)
        _forget_peak(self.driver)
        workers = [_added(resident(one) for one in _family(child)) for child in _children(self.driver)]
        if self._stage and driver:
            peak = self.peaks.setdefault(self._stage, Peak())
            peak.driver = max(peak.driver, driver)
            peak.worker = max(peak.worker, *(most for _, most in workers), 0 if workers else driver)
            peak.together = max(peak.together, now + sum(current for current, _ in workers))
        self._stage = self._stage_now()

    def _stage_now(self) -> str:
        """The last stage that the driver's last attempt has begun."""
        attempts = self.folder.path("attempts")
        events = max(attempts.glob("[0-9]*/events.jsonl"), default=None, key=lambda path: int(path.parent.name))
        if events is None or (size := events.stat().st_size) == self._seen:
            return self._stage
        self._seen = size
        stages = [event["name"] for event in self.folder.attempts()[-1].events() if event["kind"] == "stage"]
        return str(stages[-1]) if stages else ""


def _added(pairs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    now, most = zip(*pairs, strict=True)
    return sum(now), sum(most)


def _forget_peak(process: int) -> None:
    """Let the kernel count anew (proc(5), clear_refs), so that a stage's peak is its own and not an earlier one's."""
    with contextlib.suppress(OSError):
        (PROC / str(process) / "clear_refs").write_text("5")


def _children(process: int) -> list[int]:
    """The processes that it has started itself."""
    found: list[int] = []
    for path in (PROC / str(process) / "task").glob("*/children"):
        try:
            found += map(int, path.read_text().split())
        except OSError:  # the thread has ended
            continue
    return found


def _family(process: int) -> Iterator[int]:
    """It and all below it."""
    yield process
    for child in _children(process):
        yield from _family(child)
