"""Histograms that are added up shard by shard: the bins are fixed, so memory does not grow with the samples."""

from __future__ import annotations

import dataclasses
import math

import numpy as np


@dataclasses.dataclass
class Histogram:
    """Bin i of `edges` (float64 [bins + 1], rising) counts edges[i] <= x < edges[i + 1], the last one its end as well.

    That is numpy.histogram's rule. Values outside the edges are counted in `outside`, NaN in `missing`.
    """

    edges: np.ndarray
    counts: np.ndarray = dataclasses.field(init=False)  # int64 [bins]
    outside: int = 0
    missing: int = 0
    low: float = math.inf  # the extremes, those outside included
    high: float = -math.inf

    def __post_init__(self) -> None:
        self.counts = np.zeros(len(self.edges) - 1, np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count float [n]."""
        known = values[~np.isnan(values)]
        self.missing += len(values) - len(known)
        if len(known):
            found = np.histogram(known, self.edges)[0]
            self.counts += found
            self.outside += len(known) - int(found.sum())
            self.low, self.high = min(self.low, float(known.min())), max(self.high, float(known.max()))

    @property
    def total(self) -> int:
        """How many values the bins hold."""
        return int(self.counts.sum())

    def quantile(self, share: float) -> float:
        """The value below which `share` of the counted ones lie, interpolated inside its bin; NaN without any."""
        if not self.total:
            return math.nan
        ends = np.cumsum(self.counts)
        wanted = share * self.total
        place = min(int(np.searchsorted(ends, wanted)), len(self.counts) - 1)
        before = int(ends[place] - self.counts[place])
        part = (wanted - before) / max(int(self.counts[place]), 1)
        value = self.edges[place] + part * (self.edges[place + 1] - self.edges[place])
        return float(min(max(value, self.low), self.high))


def coarser(edges: np.ndarray, rows: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The range in which any row of counts int64 [rows, bins] holds something, in at most `most` bins: edges, counts.

    Neighbouring bins are put together, so nothing is estimated.
    """
    filled = np.flatnonzero(rows.sum(axis=0))
    if not len(filled):
        return edges[:2], rows[:, :1]
    first, last = int(filled[0]), int(filled[-1]) + 1
    step = -(-(last - first) // most)
    starts = np.arange(first, last, step)
    return np.append(edges[starts], edges[last]), np.add.reduceat(rows[:, :last], starts, axis=1)


def linear(low: float, high: float, bins: int) -> np.ndarray:
    """Edges of bins of one width."""
    return np.linspace(low, high, bins + 1)


def octaves(low: int, high: int, per_octave: int) -> np.ndarray:
    """Edges from 2^low to 2^high, `per_octave` bins to a doubling."""
    return 2.0 ** np.linspace(low, high, (high - low) * per_octave + 1)


def whole_numbers(most: int, per_octave: int) -> np.ndarray:
    """Edges between whole numbers from 1 to `most`: one bin each at first, later some `per_octave` to a doubling."""
    powers = octaves(0, math.ceil(math.log2(most)) + 1, per_octave)
    return np.unique(np.rint(powers[powers < most + 1])) - 0.5
