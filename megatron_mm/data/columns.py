"""The measured sizes of a set's samples, read by ranges: files as long as the set, of which little is held."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from .items import Ragged

PIECE = 1 << 20  # samples looked at together where a whole set is


class Sizes(Protocol):
    """What is known of a set's samples without reading them. Sample numbers run through the shards in their order."""

    @property
    def starts(self) -> np.ndarray:
        """int64 [shards + 1]: the first sample of each shard, and how many there are in all."""

    def tokens(self, first: int, last: int) -> np.ndarray:
        """int32 [last - first]: tokens of samples first..last-1; 0 where a sample cannot be used."""

    def targets(self, first: int, last: int) -> np.ndarray:
        """int32 [last - first]: tokens to learn."""

    def images(self, first: int, last: int) -> Ragged:
        """How each image is cut, sample by sample."""


@dataclasses.dataclass(frozen=True)
class SizesInMemory:
    """A small set's sizes, or made-up ones. all_images: how each image of each sample is cut."""

    starts: np.ndarray
    all_tokens: np.ndarray
    all_targets: np.ndarray
    all_images: Ragged

    def tokens(self, first: int, last: int) -> np.ndarray:
        return self.all_tokens[first:last]

    def targets(self, first: int, last: int) -> np.ndarray:
        return self.all_targets[first:last]

    def images(self, first: int, last: int) -> Ragged:
        offsets = self.all_images.offsets[first : last + 1]
        return Ragged(self.all_images.values[offsets[0] : offsets[-1]], offsets - offsets[0])


class SizesOnDisk:
    """The files that `measured.py` writes. Ranges are read, not mapped: mapped pages would count as memory held."""

    FILES: ClassVar[tuple[tuple[str, np.dtype[Any]], ...]] = (
        ("tokens.i32", np.dtype(np.int32)),
        ("targets.i32", np.dtype(np.int32)),
        ("images.ends.i64", np.dtype(np.int64)),
        ("images.3xi16", np.dtype((np.int16, 3))),
    )

    def __init__(self, folder: Path, starts: np.ndarray) -> None:
        self._folder, self.starts = folder, starts

    def tokens(self, first: int, last: int) -> np.ndarray:
        return self._read(0, first, last)

    def targets(self, first: int, last: int) -> np.ndarray:
        return self._read(1, first, last)

    def images(self, first: int, last: int) -> Ragged:
        ends = self._read(2, max(first - 1, 0), last)
        offsets = ends if first else np.concatenate([np.zeros(1, np.int64), ends])
        return Ragged(self._read(3, int(offsets[0]), int(offsets[-1])), offsets - offsets[0])

    def _read(self, which: int, first: int, last: int) -> np.ndarray:
        name, dtype = self.FILES[which]
        return np.fromfile(self._folder / name, dtype, count=last - first, offset=first * dtype.itemsize)


def usable(sizes: Sizes, capacity: int) -> int:
    """How many samples have some tokens and no more than `capacity`."""
    total, count = int(sizes.starts[-1]), 0
    for first in range(0, total, PIECE):
        tokens = sizes.tokens(first, min(first + PIECE, total))
        count += int(np.count_nonzero((tokens > 0) & (tokens <= capacity)))
    return count
