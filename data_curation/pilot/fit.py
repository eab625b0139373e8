"""The arithmetic: what is paid once and what grows, from two sizes, and how long workers take for many tasks."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Line(NamedTuple):
    """once + each * amount; neither is negative."""

    once: float
    each: float

    def at(self, amount: float) -> float:
        """Its value there."""
        return self.once + self.each * amount


def fit(points: Sequence[tuple[float, float]]) -> Line:
    """The line nearest to (amount, value) points in squares, among those that neither begin nor fall below zero.

    Points of a single amount cannot tell what is paid once: all of it is taken to grow.
    """
    amounts, values = (np.array(column, float) for column in zip(*points, strict=True))
    most = float(amounts.max())
    if most <= 0:
        return Line(float(values.mean()), 0.0)
    if np.all(amounts == most):
        return Line(0.0, float(values.mean()) / most)
    from scipy.optimize import nnls

    solution, _ = nnls(np.stack([np.ones(len(amounts)), amounts / most], axis=1), values)
    return Line(float(solution[0]), float(solution[1]) / most)


def fit_growth(points: Sequence[tuple[float, float]], noise: float) -> Line:
    """The same for values that differ by chance: what differs by no more than `noise` does not grow, and is the mean.

    Nor does what was seen at amounts less than twice as large. Extrapolated a hundred times, a megabyte more in the
    larger of two runs would become a hundred, and two shards of nearly one size say nothing of growth at all.
    """
    amounts, values = ([point[place] for point in points] for place in (0, 1))
    if max(amounts) < 2 * min(amounts) or max(values) - min(values) <= noise:
        return Line(float(np.mean(values)), 0.0)
    return fit(points)


def makespan(commands: Sequence[float], workers: int) -> float:
    """Seconds until commands of these lengths are done, each taken in turn by the worker that is free first."""
    if not commands:
        return 0.0
    free = [0.0] * min(max(1, workers), len(commands))
    for seconds in commands:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def spread(seconds: float, tasks: int, each: int, workers: int, start: float = 0.0) -> float:
    """The makespan of `seconds` of work in equal `tasks`, `each` of which make a command that takes `start` more."""
    whole, rest = divmod(tasks, each)
    commands = [each] * whole + ([rest] if rest else [])
    return makespan([start + seconds * size / tasks for size in commands], workers)
