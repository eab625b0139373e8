"""Many samples as columns: what is drawn, packed and written down, without an object for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

NONE = -1  # no substitute


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Lists of images side by side: list i is values[offsets[i]:offsets[i + 1]].

    values int16 [images, 3]: tiles, columns and rows of each (`ImageTiles`); offsets int64 [n + 1], from 0.
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def empty(cls) -> Ragged:
        """No lists."""
        return cls(np.zeros((0, 3), np.int16), np.zeros(1, np.int64))

    @classmethod
    def concat(cls, parts: Sequence[Ragged]) -> Ragged:
        """The lists of all parts, part after part."""
        counts = np.concatenate([np.zeros(1, np.int64), *(part.counts for part in parts)])
        return cls(np.concatenate([np.zeros((0, 3), np.int16), *(part.values for part in parts)]), np.cumsum(counts))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> np.ndarray:
        """int64 [n]: how long each list is."""
        return np.diff(self.offsets)

    def take(self, which: np.ndarray) -> Ragged:
        """The lists at `which`, in that order."""
        counts = self.counts[which]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        inside = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        return Ragged(self.values[np.repeat(self.offsets[:-1][which], counts) + inside], offsets)

    def tiles(self) -> np.ndarray:
        """int64 [n]: the tiles of each list's images together."""
        return self.sums(self.values[:, 0])

    def sums(self, of: np.ndarray) -> np.ndarray:
        """int64 [n]: for each list the sum of `of`, a number for each image."""
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(of, dtype=np.int64)])
        return ends[self.offsets[1:]] - ends[self.offsets[:-1]]


@dataclasses.dataclass(frozen=True)
class Items:
    """Samples drawn, as columns of one length.

    set int16: number of the set; index int64: number of the sample there; epoch int32: which pass over the set;
    tokens, targets int32; images: how each image is cut; substitute int64: the sample of the same set that takes its
    place when it turns out unreadable, or NONE.
    """

    set: np.ndarray
    index: np.ndarray
    epoch: np.ndarray
    tokens: np.ndarray
    targets: np.ndarray
    images: Ragged
    substitute: np.ndarray

    @classmethod
    def empty(cls) -> Items:
        """No samples."""
        small, wide, size = np.zeros(0, np.int16), np.zeros(0, np.int64), np.zeros(0, np.int32)
        return cls(small, wide, size, size, size, Ragged.empty(), wide)

    @classmethod
    def concat(cls, parts: Sequence[Items]) -> Items:
        """All parts, one after the other."""
        first, *rest = [part for part in parts if len(part)] or [cls.empty()]
        if not rest:
            return first
        columns = {name: np.concatenate([getattr(part, name) for part in (first, *rest)]) for name in FLAT}
        return cls(images=Ragged.concat([first.images, *(part.images for part in rest)]), **columns)

    def __len__(self) -> int:
        return len(self.index)

    def take(self, which: np.ndarray) -> Items:
        """The samples at `which`, in that order."""
        columns = {name: getattr(self, name)[which] for name in FLAT}
        return Items(images=self.images.take(which), **columns)

    def __getitem__(self, run: slice) -> Items:
        """A run of neighbours, without a copy of the flat columns."""
        first, last, _ = run.indices(len(self))
        offsets = self.images.offsets[first : max(first, last) + 1]
        images = Ragged(self.images.values[offsets[0] : offsets[-1]], offsets - offsets[0])
        return Items(images=images, **{name: getattr(self, name)[first:last] for name in FLAT})


FLAT = tuple(field.name for field in dataclasses.fields(Items) if field.name != "images")
