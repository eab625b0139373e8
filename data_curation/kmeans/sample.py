"""Which rows K-means is trained on: all, or a number of them that the seed draws, each shard giving its share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..arrays import write_array
from ..features import read_features, unit
from .rows import ROWS_PER_PIECE, OnDisk, on_grid

if TYPE_CHECKING:
    from ..run import CurationRun


@dataclasses.dataclass(frozen=True)
class Sample:
    """`counts` int64 [shards]: rows there are; `wanted`: rows to draw, at most their sum."""

    run: CurationRun
    counts: np.ndarray
    wanted: int

    @property
    def ends(self) -> np.ndarray:
        """How many rows the shards up to and with each one give, int64 [shards]."""
        upto = np.cumsum(self.counts)
        return self.wanted * upto // max(1, int(upto[-1]))

    def chosen(self, shard: int) -> np.ndarray:
        """The rows that a shard gives, rising."""
        ends = self.ends
        give, have = int(ends[shard] - (ends[shard - 1] if shard else 0)), int(self.counts[shard])
        if give == have:
            return np.arange(have)
        return np.sort(np.random.default_rng([self.run.seed, shard]).choice(have, give, replace=False))

    def piece(self, piece: int) -> np.ndarray:
        """Rows piece * ROWS_PER_PIECE and following of all that were drawn, as they were embedded: float32 [n, d]."""
        start, stop = piece * ROWS_PER_PIECE, min((piece + 1) * ROWS_PER_PIECE, self.wanted)
        return np.concatenate(list(self._between(start, stop)))

    def _between(self, start: int, stop: int) -> Iterator[np.ndarray]:
        ends = self.ends
        for shard in range(int(np.searchsorted(ends, start, side="right")), len(ends)):
            first = int(ends[shard - 1]) if shard else 0
            if first >= stop:
                return
            rows = self.chosen(shard)[max(0, start - first) : stop - first]
            if len(rows):
                low, high = int(rows[0]), int(rows[-1]) + 1  # whole chunks are read anyway: single rows are slow
                yield read_features(self.run, self.run.plan.names[shard], low, high)[rows - low]

    def add_up(self, pieces: range, dimension: int) -> np.ndarray:
        """The sum of some pieces' rows, float64 [d]: exact, float16 being multiples of 2^-24."""
        return sum((self.piece(piece).sum(axis=0, dtype=np.float64) for piece in pieces), np.zeros(dimension))

    def write(self, rows: OnDisk, pieces: range, mean: np.ndarray) -> None:
        """Write some pieces for training: minus `mean`, at unit length, on the grid. Those that exist are kept."""
        for piece in pieces:
            if not rows.path(piece).exists():
                write_array(rows.path(piece), on_grid(unit(self.piece(piece), mean)).astype(np.float32))
