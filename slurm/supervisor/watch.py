"""From the ranks' heartbeats: is the training alive, or is its silence a hang?"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from megavlm.platform.runs.attempt import STEP

from ..profile import Hang

BEAT_SECONDS, BEATS_PER_SECOND = 2.0, 50.0  # how often ranks beat: each so many seconds, all together so many a second
BEATS_MISSED = 3
LONGEST_LOOK = 5.0  # seconds that one look may count for: a supervisor that was itself stopped has seen nothing
REMEMBERED = 101  # steps
TRAINING = frozenset({"train"})  # verbs whose ranks beat from their start on, and that finish their run


@dataclasses.dataclass
class Rank:
    """A rank as seen from here: its last beat, when it came by our clock, and whether it has done a step meanwhile."""

    time: float
    step: int
    doing: str
    seen: float
    moved: bool = False


@dataclasses.dataclass(frozen=True)
class Silence:
    """A hang: `ranks` gave no sign for `seconds`; `step` is the furthest that any rank got."""

    step: int
    seconds: float
    ranks: tuple[int, ...]


class Watch:
    """Fed with heartbeats every now and then; says when a rank has been silent for too long.

    Only changes count, by this machine's own clock: those of the nodes may differ. Ranks are watched from their first
    beat on; `expected` are beats that must come at all, for verbs known to give them.
    """

    def __init__(self, limits: Hang, expected: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._expected, self._clock = limits, expected, clock
        self._looked, self._now = clock(), 0.0
        self._ranks: dict[int, Rank] = {}
        self._steps: deque[float] = deque(maxlen=REMEMBERED)  # seconds per step

    def look(self, beats: Sequence[dict[str, Any]]) -> Silence | None:
        """Take the newest beat of every rank; a Silence when one of them has been quiet for longer than its limit."""
        clock = self._clock()
        self._now += min(clock - self._looked, max(LONGEST_LOOK, self.interval))
        self._looked = clock
        for beat in beats:
            self._take(beat)
        if not self._ranks:
            late = self._expected and self._now > self._limits.other_seconds
            return Silence(0, self._now, ()) if late else None
        limit = self.limit
        silent = tuple(rank for rank, one in sorted(self._ranks.items()) if self._now - one.seen > limit)
        longest = max(self._now - one.seen for one in self._ranks.values())
        return Silence(max(one.step for one in self._ranks.values()), longest, silent) if silent else None

    @property
    def interval(self) -> float:
        """Seconds between two beats of a rank that does well; also how often a look is worth it."""
        return max(BEAT_SECONDS, len(self._ranks) / BEATS_PER_SECOND)

    @property
    def limit(self) -> float:
        """Seconds of silence that are a hang now.

        While any rank starts, saves or evaluates, the others may be waiting for it; and the first step of all may
        compile kernels and build communicators.
        """
        if any(one.doing != STEP or not one.moved for one in self._ranks.values()):
            return self._limits.other_seconds
        median = statistics.median(self._steps) if self._steps else 0.0
        return max(self._limits.seconds, self._limits.steps * median, BEATS_MISSED * self.interval)

    def _take(self, beat: dict[str, Any]) -> None:
        known = self._ranks.get(beat["rank"])
        if known is None:
            self._ranks[beat["rank"]] = Rank(beat["time"], beat["step"], beat["doing"], self._now)
            return
        if (beat["time"], beat["step"], beat["doing"]) == (known.time, known.step, known.doing):
            return
        steps = beat["step"] - known.step
        if steps > 0 and known.doing == beat["doing"] == STEP:
            self._steps.append((self._now - known.seen) / steps)
        moved = (known.moved or steps > 0) and steps >= 0 and beat["doing"] != "start"
        self._ranks[beat["rank"]] = Rank(beat["time"], beat["step"], beat["doing"], self._now, moved)
