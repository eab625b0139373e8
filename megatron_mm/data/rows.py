"""Packed sequences as runs of items."""

from __future__ import annotations

import dataclasses
from itertools import chain

import numpy as np

from .items import Items


@dataclasses.dataclass(frozen=True)
class Rows:
    """Packed sequences: row i holds items[ends[i - 1]:ends[i]]."""

    items: Items
    ends: np.ndarray  # int64 [rows]

    @classmethod
    def of(cls, items: Items, groups: list[list[int]]) -> Rows:
        """The rows that `groups` of items make."""
        flat = np.array(list(chain.from_iterable(groups)), np.int64)
        return cls(items.take(flat), np.cumsum(list(map(len, groups)), dtype=np.int64))

    @classmethod
    def concat(cls, parts: list[Rows]) -> Rows:
        """All rows, part after part."""
        sizes = np.concatenate([np.diff(part.ends, prepend=0) for part in parts] or [np.zeros(0, np.int64)])
        return cls(Items.concat([part.items for part in parts]), np.cumsum(sizes, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def starts(self) -> np.ndarray:
        """int64 [rows]: the first item of each row."""
        return np.concatenate([np.zeros(1, np.int64), self.ends[:-1]])[: len(self)]

    @property
    def tokens(self) -> np.ndarray:
        """int64 [rows]: tokens of each row, padding not counted."""
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.items.tokens, dtype=np.int64)])
        return ends[self.ends] - ends[self.starts]

    def take(self, which: np.ndarray) -> Rows:
        """The rows at `which`, in that order."""
        counts = (self.ends - self.starts)[which]
        ends = np.cumsum(counts)
        inside = np.arange(int(counts.sum())) - np.repeat(ends - counts, counts)
        return Rows(self.items.take(np.repeat(self.starts[which], counts) + inside), ends)

    def __getitem__(self, run: slice) -> Rows:
        first, last, _ = run.indices(len(self))
        starts = np.concatenate([np.zeros(1, np.int64), self.ends])
        return Rows(self.items[int(starts[first]) : int(starts[last])], self.ends[first:last] - starts[first])
