"""Which samples each output shard takes: neighbours in the source's order, the same number in every shard.

In memory are the survivors' numbers per shard, eight bytes per sample while equal keys are looked for, and no key.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

    from ..run import CurationRun
    from ..source import Shard


@dataclasses.dataclass(frozen=True)
class Piece:
    """Survivors start..stop of one source shard."""

    shard: Shard
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def rows(self, survivors: pa.Table) -> Iterator[dict[str, Any]]:
        """This piece's rows of a table with one row per survivor of the shard."""
        yield from survivors.slice(self.start, len(self)).to_pylist()


@dataclasses.dataclass(frozen=True)
class Division:
    """All that `stage` receives, in shards of `size` samples, the last one smaller."""

    run: CurationRun
    stage: str
    size: int

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """The number of samples up to and with each source shard, int64 [shards]."""
        counts = [len(self.run.survivors(self.stage, name)) for name in self.run.plan.names]
        return np.cumsum(np.array(counts, np.int64))

    @property
    def tasks(self) -> int:
        """How many output shards."""
        return -(-int(self.ends[-1] if len(self.ends) else 0) // self.size)

    def pieces(self, task: int) -> list[Piece]:
        """What output shard `task` takes, source shard after source shard."""
        low, high = task * self.size, min((task + 1) * self.size, int(self.ends[-1]))
        first, last = np.searchsorted(self.ends, [low, high - 1], side="right").tolist()
        pieces = []
        for number in range(first, last + 1):
            before = int(self.ends[number - 1]) if number else 0
            start, stop = max(low, before) - before, min(high, int(self.ends[number])) - before
            if start < stop:
                pieces.append(Piece(self.run.shards[number], start, stop))
        return pieces

    @functools.cached_property
    def shared(self) -> frozenset[str]:
        """Keys that several samples have: img2dataset's hold the shard's number, but two sources may be merged."""
        hashes = np.empty(int(self.ends[-1]) if len(self.ends) else 0, np.int64)
        filled = 0
        for keys in self._keys():
            hashes[filled : filled + len(keys)] = np.fromiter(map(hash, keys), np.int64, len(keys))
            filled += len(keys)
        hashes.sort()
        twice = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        if not twice:
            return frozenset()
        times = Counter(key for keys in self._keys() for key in keys if hash(key) in twice)
        return frozenset(key for key, count in times.items() if count > 1)

    def _keys(self) -> Iterator[list[str]]:
        for name in self.run.plan.names:
            yield self.run.survivors(self.stage, name).to_pylist()
