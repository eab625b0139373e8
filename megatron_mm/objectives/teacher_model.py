"""The teacher of patch aligning: a frozen encoder that sees each image on a square; the padding is left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn

from ..backend.transformer import transformer_config, whole
from ..contracts import BuildContext, VisualTokens
from ..tiles import Tiles, VariedTiles
from ..tower import first_stage_writes

if TYPE_CHECKING:
    from ..config import ModelConfig
    from .patch_aligning import PatchAligning


class Teacher(MegatronModule):
    """Stands on every process, as the tower does, since whoever decodes a tile shows it to both.

    Its weights are called objectives.teacher. in checkpoints.
    """

    def __init__(self, spec: PatchAligning, ctx: BuildContext, model: ModelConfig) -> None:
        shape = {"num_layers": 1, "hidden_size": spec.width, "num_attention_heads": ctx.parallel.tp}
        super().__init__(config=transformer_config(whole(ctx), **shape))
        self.spec, self.model = spec, model
        self.objectives = nn.ModuleDict({"teacher": spec.teacher.build(ctx)})
        self.requires_grad_(False)

    def count(self, size: tuple[int, int]) -> int:
        """Features of a tile of this height and width."""
        return self.spec.cells(self.model, size)

    def nothing(self) -> Tensor:
        """Of no tile the features, [0, width]."""
        weight = next(self.parameters())
        return weight.new_zeros(0, self.spec.width)

    def train(self, mode: bool = True) -> Teacher:
        """It never trains: dropout and the like stay off."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, tiles: Tiles) -> VisualTokens:
        """Tiles of many sizes -> the features of each one's cells, row-major, [cells, width] in all."""
        varied = VariedTiles.of(tiles)
        if not len(varied):
            return VisualTokens(self.nothing(), torch.zeros(0, dtype=torch.int64, device=varied.device))
        (seen,) = self.objectives["teacher"](torch.cat([self._square(tile)[None] for tile in varied.each()]))
        grids = [self.spec.grid(self.model, size) for size in varied.sizes]
        found = [_middle(each, grid).flatten(0, 1) for each, grid in zip(seen.tiles, grids, strict=True)]
        counts = torch.tensor([rows * columns for rows, columns in grids], dtype=torch.int64, device=varied.device)
        segments = torch.arange(len(varied), device=varied.device).repeat_interleave(counts)
        return VisualTokens(torch.cat(found), segments)

    def _square(self, tile: Tensor) -> Tensor:
        """[3, H, W] of 0..255 -> float32 [3, side, side]: at the teacher's scale, in the middle of its mean colour.

        The published code resizes the file itself to both sizes; this one the tile, by the same antialiased bicubic.
        """
        spec, side = self.spec, self.spec.side
        height, width = (edge * side // self.model.tiling.tile for edge in tile.shape[1:])
        small = tile.float()
        if (height, width) != tile.shape[1:]:
            small = F.interpolate(small[None], size=(height, width), mode="bicubic", antialias=True)[0]
            small = small.round().clamp(0, 255)
        colour = torch.tensor([int(255 * mean) for mean in spec.teacher.mean], device=tile.device)
        canvas = colour.float()[:, None, None].repeat(1, side, side)
        top, left = ((side // spec.cell - edge // spec.cell) // 2 * spec.cell for edge in (height, width))
        canvas[:, top : top + height, left : left + width] = small
        return canvas

    def sharded_state_dict(self, prefix: str = "", *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The weights by their global names; those of the first pipeline stage are the ones that are written."""
        return first_stage_writes(super().sharded_state_dict(prefix, *args, **kwargs))


def _middle(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """[rows, columns, width] of the square -> those of the image in its middle."""
    top, left = ((whole - part) // 2 for whole, part in zip(features.shape, grid, strict=False))
    return features[top : top + grid[0], left : left + grid[1]]
