"""The rows that K-means is trained on: an array, or pieces on disk of which one at a time is in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

ROWS_PER_PIECE = 16_384  # 50 MB of 768 dimensions in float32
GRID = 2.0**24


class Rows(Protocol):
    """Unit rows float32 [total, d] on the grid, in blocks that do not depend on who reads them."""

    @property
    def total(self) -> int:
        """How many."""
        ...

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows in order, at most ROWS_PER_PIECE at once."""
        ...

    def take(self, indices: np.ndarray) -> np.ndarray:
        """The rows of rising `indices`, int64 [m]: float32 [m, d]."""
        ...


@dataclasses.dataclass(frozen=True)
class InMemory:
    """Rows that are an array."""

    array: np.ndarray

    @property
    def total(self) -> int:
        """How many."""
        return len(self.array)

    def blocks(self) -> Iterator[np.ndarray]:
        """Views of the array."""
        for start in range(0, len(self.array), ROWS_PER_PIECE):
            yield self.array[start : start + ROWS_PER_PIECE]

    def take(self, indices: np.ndarray) -> np.ndarray:
        """A copy."""
        return self.array[indices]


@dataclasses.dataclass(frozen=True)
class OnDisk:
    """Rows in files FOLDER/{piece:06d}.npy of ROWS_PER_PIECE rows each, the last one shorter."""

    folder: Path
    total: int

    @property
    def pieces(self) -> int:
        """How many files."""
        return -(-self.total // ROWS_PER_PIECE)

    def path(self, piece: int) -> Path:
        """Where a piece lies."""
        return self.folder / f"{piece:06d}.npy"

    def piece(self, piece: int) -> np.ndarray:
        """One piece, read whole: a mapped file's pages would count as this process's memory."""
        return np.load(self.path(piece), allow_pickle=False)

    def blocks(self) -> Iterator[np.ndarray]:
        """Piece after piece."""
        return (self.piece(piece) for piece in range(self.pieces))

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Reads each piece that holds one of them once."""
        places = np.split(indices, np.searchsorted(indices, np.arange(1, self.pieces) * ROWS_PER_PIECE))
        return np.concatenate([
            self.piece(piece)[wanted - piece * ROWS_PER_PIECE] for piece, wanted in enumerate(places) if len(wanted)
        ])  # fmt: skip


def on_grid(values: np.ndarray) -> np.ndarray:
    """Rounded to multiples of 2^-24, of which float32 holds every one in -1..1 and float64 adds 2^29 without error."""
    return np.rint(values * np.float32(GRID)) / np.float32(GRID)
