"""Tiles of many sizes as one batch: used as a tensor [n, 3, H, W] of tiles of one size is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

    from .contracts import Sizes


@dataclass(frozen=True)
class VariedTiles:
    """Tile after tile in memory, each [3, height, width]; a slice of them is a view."""

    pixels: Tensor  # uint8 [sum of 3 * height * width], RGB. Float of the same range where pixels want a gradient
    sizes: Sizes  # height and width of each

    @classmethod
    def of(cls, tiles: Tensor | VariedTiles) -> VariedTiles:
        """Tiles of one size [n, 3, H, W] as well."""
        if isinstance(tiles, VariedTiles):
            return tiles
        n, _, height, width = tiles.shape
        return cls(tiles.reshape(-1), ((height, width),) * n)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, run: slice) -> VariedTiles:
        """A run of neighbours: a view. Raises ValueError for a step, which no view has."""
        first, last, step = run.indices(len(self))
        if step != 1:
            raise ValueError(f"tiles of many sizes in steps of {step}")
        start, length = (3 * _area(part) for part in (self.sizes[:first], self.sizes[first:last]))
        return VariedTiles(self.pixels[start : start + length], self.sizes[first:last])

    @property
    def device(self) -> torch.device:
        """Where the pixels are."""
        return self.pixels.device

    @property
    def requires_grad(self) -> bool:
        """Whether the pixels want a gradient."""
        return self.pixels.requires_grad

    def to(self, device: torch.device | str) -> VariedTiles:
        """The same on `device`."""
        return VariedTiles(self.pixels.to(device), self.sizes)

    def each(self) -> list[Tensor]:
        """The tiles one by one, [3, height, width] each: views."""
        parts = self.pixels.split([3 * height * width for height, width in self.sizes])
        return [part.view(3, *size) for part, size in zip(parts, self.sizes, strict=True)]


Tiles = Tensor | VariedTiles


def as_tiles(pixels: np.ndarray, sizes: Sizes | None) -> Tiles:
    """uint8 [n, 3, H, W], or with their `sizes` the flat pixels of tiles of many, handed over without a copy."""
    tensor = torch.from_numpy(pixels)
    return tensor if sizes is None else VariedTiles(tensor, sizes)


def joined(parts: Sequence[Tiles]) -> Any:
    """The tiles of all parts, at least one, part after part: a tensor where all of them are."""
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if len(tensors) == len(parts):
        return torch.cat(tensors)
    varied = [VariedTiles.of(part) for part in parts]
    sizes = tuple(chain.from_iterable(part.sizes for part in varied))
    return VariedTiles(torch.cat([part.pixels for part in varied]), sizes)


def in_passes(tiles: Tiles, pixels: int) -> Iterator[Tiles]:
    """The tiles in runs of at most so many pixels, and at least one tile."""
    if isinstance(tiles, Tensor):
        yield from tiles.split(max(pixels // (tiles.shape[-2] * tiles.shape[-1]), 1))
        return
    start = held = 0
    for number, (height, width) in enumerate(tiles.sizes):
        if held and held + height * width > pixels:
            yield tiles[start:number]
            start, held = number, 0
        held += height * width
    yield tiles[start:]


def _area(sizes: Sizes) -> int:
    return sum(height * width for height, width in sizes)
