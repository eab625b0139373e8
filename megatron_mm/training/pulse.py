"""A rank's signs of life: often enough to see a hang, seldom enough for a thousand ranks. Loads no torch."""

from __future__ import annotations

import time

from megavlm.platform.runs import Attempt

SECONDS = 2.0
MOST_PER_SECOND = 50.0  # small files that all ranks together may write


class Pulse:
    """Called with what the rank does now. Writes a heartbeat when that changes, and otherwise every `seconds`."""

    def __init__(self, attempt: Attempt, rank: int, ranks: int) -> None:
        self.seconds = max(SECONDS, ranks / MOST_PER_SECOND)
        self._attempt, self._rank = attempt, rank
        self._doing, self._step, self._last = "", 0, 0.0

    def __call__(self, doing: str, step: int | None = None) -> None:
        """`doing` is "start", "pack", "step", "save" or "evaluate"; `step` stays what it was when it is not given."""
        self._step = self._step if step is None else step
        if doing != self._doing or time.monotonic() - self._last >= self.seconds:
            self._attempt.heartbeat(self._rank, self._step, doing)
            self._doing, self._last = doing, time.monotonic()
