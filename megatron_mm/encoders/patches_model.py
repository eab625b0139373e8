"""Tiles of any sizes as cells, so that everything after it is one batch: what patch embeddings have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megavlm.kernels.tile_normalise import tile_normalise

from ..contracts import BuildContext, FeatureMap
from ..tiles import Tiles, VariedTiles

if TYPE_CHECKING:
    from .patches import PatchEmbedding


class PatchEmbeddingModel(nn.Module):
    """Tiles in 0..255 -> one FeatureMap of all their cells. The published code embeds one image after another.

    A subclass says `embedded`.
    """

    def __init__(self, spec: PatchEmbedding, ctx: BuildContext) -> None:
        super().__init__()
        self.spec, self.recompute = spec, ctx.recompute == "full"

    def forward(self, tiles: Tiles) -> list[FeatureMap]:
        """Tiles, uint8 (float where pixels want a gradient) -> [FeatureMap of [all tiles' cells, channels]].

        Raises ConfigError for a tile that is not made of whole cells.
        """
        (shape,) = self.spec.maps
        if isinstance(tiles, VariedTiles):
            grid, grids = None, tuple(self.spec.grid_of(*size) for size in tiles.sizes)
        else:
            grid, grids = self.spec.grid_of(*tiles.shape[-2:]), ()
        cells = cells_of(tiles, self.spec.cell)
        # Recomputed from the bytes, which are a fraction of what any step after them would keep.
        values = checkpoint(self._values, cells, use_reentrant=False) if self.recompute else self._values(cells)
        images = torch.arange(len(tiles), device=tiles.device)
        return [FeatureMap(values, grid, images, shape.expert, shape.layer, grids)]

    def _values(self, cells: Tensor) -> Tensor:
        spec, dtype = self.spec, next(self.parameters()).dtype
        return self.embedded(tile_normalise(cells, spec.patch_size, spec.mean, spec.std, dtype=dtype))

    @abstractmethod
    def embedded(self, patches: Tensor) -> Tensor:
        """Normalised [cells, pool * pool, 3 * patch_size**2], row-major in a cell -> [cells, channels]."""


def cells_of(tiles: Tiles, cell: int) -> Tensor:
    """Tiles whose sides are multiples of `cell` -> [cells, 3, cell, cell], row-major in a tile, tile after tile.

    One strided copy of the bytes for each tile.
    """
    if isinstance(tiles, Tensor):
        return _cut(tiles, cell)
    if not len(tiles):
        return tiles.pixels.view(0, 3, cell, cell)
    return torch.cat([_cut(tile[None], cell) for tile in tiles.each()])


def _cut(tiles: Tensor, cell: int) -> Tensor:
    """[n, 3, H, W] -> [n * rows * columns, 3, cell, cell]."""
    blocks = tiles.unflatten(3, (tiles.shape[3] // cell, cell)).unflatten(2, (tiles.shape[2] // cell, cell))
    return blocks.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
