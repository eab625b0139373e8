"""Whether a loss is out of line with those before it. Loads no torch."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import deque
from collections.abc import Iterable

WINDOW = 50  # losses that a new one is held against
FEWEST = 20  # before so many nothing is a spike
FACTOR = 8.0  # median absolute deviations, scaled to a normal distribution's sigma
TO_SIGMA = 1.4826
LEAST = 0.05  # of the median: where the losses hardly differ, this much more is no spike


@dataclasses.dataclass(frozen=True)
class Spike:
    """A loss, and the median and the scaled median absolute deviation of the losses before it."""

    loss: float
    median: float
    sigma: float


class SpikeDetector:
    """Fed every step's loss. A spike does not enter the window, so that a series of them is told each time."""

    def __init__(self, before: Iterable[float] = ()) -> None:
        self._window: deque[float] = deque((loss for loss in before if math.isfinite(loss)), maxlen=WINDOW)

    def feed(self, loss: float) -> Spike | None:
        """The spike that this loss is, or None. A loss that is not finite is none: that has its own treatment."""
        if not math.isfinite(loss):
            return None
        if len(self._window) >= FEWEST:
            median = statistics.median(self._window)
            sigma = TO_SIGMA * statistics.median(abs(each - median) for each in self._window)
            if loss > median + max(FACTOR * sigma, LEAST * abs(median)):
                return Spike(loss, median, sigma)
        self._window.append(loss)
        return None
