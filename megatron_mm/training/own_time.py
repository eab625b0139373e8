"""How long a rank worked by itself in a step: what tells a slow one, since all of them end a step together."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch


class OwnTime:
    """Adds up the stretches of a step in which this rank waits for nobody.

    Marked are a rank's share of the tiles, which no other rank has more of, and the pipeline's schedule where no other
    rank takes part in it. On a GPU the device's own clock counts, and nothing waits for it before `seconds`.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def measure(self, alone: bool = True) -> Iterator[None]:
        """Count what happens inside, if this rank is `alone` in it."""
        if not alone:
            yield
        elif torch.cuda.is_available():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._marks.append((begin, end))
        else:
            begin_at = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - begin_at

    def seconds(self) -> float:
        """The sum so far. Waits for the device to come past the last mark."""
        for begin, end in self._marks:
            end.synchronize()
            self._seconds += begin.elapsed_time(end) / 1000
        self._marks.clear()
        return self._seconds
