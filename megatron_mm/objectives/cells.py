"""Where in a pack the cells stand that one of the teacher's features is compared with."""

from __future__ import annotations

import functools
from itertools import accumulate

import torch
from torch import Tensor

from ..config import ModelConfig
from ..contracts import PackedBatch, Sizes
from .patch_aligning import PatchAligning


class Cells:
    """Of one model. Tiles may differ in size; all of a tile's tokens stand in its sequence, in their order."""

    def __init__(self, spec: PatchAligning, model: ModelConfig) -> None:
        self._spec, self._model = spec, model
        self._of_tile = functools.lru_cache(4096)(self._places)

    def rows(self, batch: PackedBatch) -> Tensor:
        """int64 [features, pool * pool]: positions in the sequence whose hidden states are averaged for each."""
        sizes, device = self.sizes(batch), batch.visual_index.device
        starts = accumulate((self._model.tokens_of(size) for size in sizes), initial=0)
        found = [self._of_tile(size) + start for size, start in zip(sizes, starts, strict=False)]
        whole = torch.cat(found) if found else torch.zeros(0, self._spec.pool(self._model) ** 2, dtype=torch.int64)
        return batch.visual_index[whole.to(device)]

    def counts(self, batch: PackedBatch) -> list[int]:
        """The features of each tile."""
        return [self.count(size) for size in self.sizes(batch)]

    def count(self, size: tuple[int, int]) -> int:
        """The features of a tile of this height and width."""
        return self._spec.cells(self._model, size)

    def most(self, length: int) -> int:
        """How many features a pack of so many positions can have."""
        return length // self._spec.pool(self._model) ** 2

    def sizes(self, batch: PackedBatch) -> Sizes:
        """Height and width of each tile of a pack."""
        if batch.sizes is not None:
            return batch.sizes
        side = self._model.tiling.tile
        return ((side, side),) * (len(batch.visual_index) // self._model.tokens_per_tile)

    def _places(self, size: tuple[int, int]) -> Tensor:
        """Among a tile's tokens: int64 [features, pool * pool], feature after feature, row-major."""
        pool = self._spec.pool(self._model)
        rows, columns = self._spec.grid(self._model, size)
        places = self._model.connector.cell_places(rows * pool, columns * pool)
        windows = torch.as_tensor(places).view(rows, pool, columns, pool).transpose(1, 2)
        return windows.reshape(rows * columns, pool * pool)
