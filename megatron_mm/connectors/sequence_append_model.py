"""Sequence append: an MLP for each map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from megatron.core.transformer.module import MegatronModule

from ..contracts import BuildContext, FeatureMap, VisualTokens
from ..maps import MapShape
from .common_grid import on_grid
from .mlp_model import Projector, as_tokens, projector_of
from .sequence_append import map_names

if TYPE_CHECKING:
    from .sequence_append import SequenceAppend


class Projectors(MegatronModule):
    """MLPs by name. No ModuleDict: to megatron-core's checkpoints what is split inside one would look whole."""

    def __init__(self, projectors: dict[str, Projector]) -> None:
        super().__init__(config=next(iter(projectors.values())).config)
        for name, projector in projectors.items():
            self.add_module(name, projector)


class SequenceAppendModel(MegatronModule):
    """k feature maps of n tiles -> n * k * grid * grid visual tokens."""

    def __init__(self, spec: SequenceAppend, ctx: BuildContext, maps: Sequence[MapShape], width: int) -> None:
        named = zip(map_names(maps), maps, strict=True)
        projectors = Projectors({name: projector_of(spec, ctx, each.channels, width) for name, each in named})
        super().__init__(config=projectors.config)
        self.grid = spec.grid
        self.projectors = projectors

    def forward(self, features: list[FeatureMap]) -> VisualTokens:
        """FeatureMaps in the order of `maps` -> VisualTokens with values [n * k * grid * grid, width]."""
        each = []
        for feature, projector in zip(features, self.projectors.children(), strict=True):
            cells = on_grid(feature, self.grid, self.grid)
            each.append(projector(cells.flatten(0, 2)).unflatten(0, (len(cells), self.grid**2)))
        return as_tokens(torch.cat(each, dim=1).flatten(0, 1), features[0])
