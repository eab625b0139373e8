"""Channel concatenation and its MLP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from megatron.core.transformer.module import MegatronModule

from ..contracts import BuildContext, FeatureMap, VisualTokens
from ..maps import MapShape
from .channel_concat import joined
from .common_grid import on_grid
from .mlp_model import as_tokens, projector_of

if TYPE_CHECKING:
    from .channel_concat import ChannelConcat


class ChannelConcatModel(MegatronModule):
    """Feature maps of n tiles -> n * grid * grid visual tokens."""

    def __init__(self, spec: ChannelConcat, ctx: BuildContext, maps: Sequence[MapShape], width: int) -> None:
        projector = projector_of(spec, ctx, joined(maps), width)
        super().__init__(config=projector.config)
        self.grid = spec.grid
        self.projector = projector

    def forward(self, features: list[FeatureMap]) -> VisualTokens:
        """FeatureMaps in the order of `maps` -> VisualTokens with values [n * grid * grid, width]."""
        cells = torch.cat([on_grid(each, self.grid, self.grid) for each in features], dim=-1)
        return as_tokens(self.projector(cells.flatten(0, 2)), features[0])
