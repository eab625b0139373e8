"""Lloyd's iterations on unit rows (spherical K-means, as in SemDeDup), whose sums are exact.

Rows and cosines are rounded to multiples of 2^-24 (about float32's own precision at 1). float64 then adds them without
any error, so that neither the order of the rows nor the number of tasks that share them changes a single bit.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterable, Sequence

import numpy as np

from .nearest import Engine, Search, searcher
from .rows import Rows, on_grid


@dataclasses.dataclass
class Sums:
    """What one pass over some rows adds up to."""

    rows: np.ndarray  # float64 [k, d]: the sum of each centroid's rows
    counts: np.ndarray  # int64 [k]
    cosine: float  # summed over all rows

    def __iadd__(self, other: Sums) -> Sums:
        self.rows += other.rows
        self.counts += other.counts
        self.cosine += other.cosine
        return self


@dataclasses.dataclass(frozen=True)
class Fit:
    """Centroids float32 [k, d] of unit length, and the mean cosine of each iteration that led to them."""

    centroids: np.ndarray
    objectives: tuple[float, ...] = ()

    def ended(self, iterations: int, tolerance: float) -> str | None:
        """Why there is no further iteration ("converged", "iterations"), or None."""
        if len(self.objectives) > 1:
            before, last = self.objectives[-2:]
            if abs(last - before) <= tolerance * abs(before):
                return "converged"
        return "iterations" if len(self.objectives) >= iterations else None


def add_up(blocks: Iterable[np.ndarray], search: Search, shape: tuple[int, int]) -> Sums:
    """One pass over rows float32 [n, d] on the grid, for centroids of `shape` [k, d]."""
    import scipy.sparse

    sums = Sums(np.zeros(shape), np.zeros(shape[0], np.int64), 0.0)
    for block in blocks:
        nearest, cosines = search(block)
        belongs = scipy.sparse.csr_array(
            (np.ones(len(block)), (nearest, np.arange(len(block)))), (shape[0], len(block))
        )
        sums.rows += belongs @ block.astype(np.float64)
        sums.counts += np.bincount(nearest, minlength=shape[0])
        sums.cosine += float(on_grid(cosines).sum(dtype=np.float64))
    return sums


def moved(fit: Fit, sums: Sums) -> Fit:
    """The next iteration's centroids: each the direction of its rows' sum."""
    lengths = np.linalg.norm(sums.rows, axis=1, keepdims=True)
    centroids = np.where(lengths > 0, sums.rows / np.maximum(lengths, 1e-12), fit.centroids).astype(np.float32)
    _refill(centroids, sums.counts)
    return Fit(centroids, (*fit.objectives, sums.cosine / max(1, int(sums.counts.sum()))))


def _refill(centroids: np.ndarray, counts: np.ndarray) -> None:
    """Give each empty cluster half of the then largest: two copies of its centroid, pushed apart in every coordinate.

    FAISS does the same with a donor drawn at random; taking the largest needs no generator.
    """
    largest = [(-int(count), index) for index, count in enumerate(counts) if count > 1]
    heapq.heapify(largest)
    push = np.where(np.arange(centroids.shape[1]) % 2, 1 - 1 / 1024, 1 + 1 / 1024).astype(np.float32)
    for empty in np.flatnonzero(counts == 0).tolist():
        if not largest:
            return
        count, donor = heapq.heappop(largest)
        centroids[empty], centroids[donor] = centroids[donor] * push, centroids[donor] * (2 - push)
        centroids[[empty, donor]] /= np.linalg.norm(centroids[[empty, donor]], axis=1, keepdims=True)
        for half, index in ((count // 2, donor), (count - count // 2, empty)):
            heapq.heappush(largest, (half, index))


def lloyd(rows: Rows, fit: Fit, iterations: int, tolerance: float = 0.0, engine: Engine = "auto") -> Fit:
    """Iterate from `fit` until it has `iterations` behind it or the mean cosine rises by no more than `tolerance`."""
    while not fit.ended(iterations, tolerance):
        search = searcher(fit.centroids, engine, rows.total)
        fit = moved(fit, add_up(rows.blocks(), search, fit.centroids.shape))
    return fit


def total(parts: Sequence[Sums]) -> Sums:
    """The sums of several tasks' rows."""
    out = dataclasses.replace(parts[0])
    for part in parts[1:]:
        out += part
    return out
