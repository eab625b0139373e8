"""The deformable connector's fuser and the MLP behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..contracts import BuildContext, FeatureMap, VisualTokens
from ..maps import MapShape
from .common_grid import on_grid
from .fuser_attention_model import allocated
from .mlp_model import as_tokens, projector_of

if TYPE_CHECKING:
    from .deformable import DeformableConnector


class DeformableFuser(nn.Module):
    """The first of several maps, plus what its cells read from the others."""

    def __init__(self, spec: DeformableConnector, maps: Sequence[MapShape]) -> None:
        super().__init__()
        channels = maps[0].channels
        self.query_proj, *others = (_normed(each.channels, channels) for each in maps)
        self.level_proj = nn.ModuleList(others)
        self.attention = spec.attention(maps).build()

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """[n, queries, channels], and each other map [n, its cells, its channels] -> [n, queries, channels]."""
        values = [project(each) for project, each in zip(self.level_proj, others, strict=True)]
        return first + self.attention(self.query_proj(first), torch.cat(values, dim=1))


class DeformableConnectorModel(MegatronModule):
    """Feature maps of n tiles -> n * grid * grid visual tokens."""

    def __init__(self, spec: DeformableConnector, ctx: BuildContext, maps: Sequence[MapShape], width: int) -> None:
        projector = projector_of(spec, ctx, maps[0].channels, width)
        super().__init__(config=projector.config)
        with torch.device("meta"):  # where nothing is drawn
            fuser = DeformableFuser(spec, maps)
        self.fuser = allocated(fuser, ctx)
        self.projector = projector
        self.grid = spec.grid
        self.recompute = ctx.recompute == "full"

    def forward(self, features: list[FeatureMap]) -> VisualTokens:
        """FeatureMaps in the order of `maps` -> VisualTokens with values [n * grid * grid, width]."""
        asking, *others = features
        maps = [on_grid(asking, self.grid, self.grid).flatten(1, 2), *(each.tiles.flatten(1, 2) for each in others)]
        fused = checkpoint(self.fuser, *maps, use_reentrant=False) if self.recompute else self.fuser(*maps)
        return as_tokens(self.projector(fused.flatten(0, 1)), asking)


def _normed(channels: int, width: int) -> nn.Sequential:
    """Mini-Gemini's way in: LayerNorm, Linear."""
    return nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width))
