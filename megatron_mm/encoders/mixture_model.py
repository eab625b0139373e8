"""The experts of a mixture, one after another."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..contracts import BuildContext, FeatureMap
from .looking import at_side, look, nothing_seen, sharded

if TYPE_CHECKING:
    from .mixture import Mixture


class MixtureModel(nn.Module):
    """Tiles [n, 3, S, S] in 0..255 -> the FeatureMaps of every expert; their weights are under "experts.KEY."."""

    def __init__(self, spec: Mixture, ctx: BuildContext) -> None:
        super().__init__()
        self.maps = spec.maps
        self.sides = {key: expert.image_size for key, expert in spec.used.items()}
        self.experts = nn.ModuleDict({key: expert.build(ctx) for key, expert in spec.used.items()})

    def forward(self, tiles: Tensor) -> list[FeatureMap]:
        """uint8 (float where pixels want a gradient) [n, 3, S, S] -> one FeatureMap per MapShape, in that order."""
        if not len(tiles):
            return nothing_seen(self.maps, self)
        seen = {side: at_side(tiles, side) for side in set(self.sides.values())}  # once for experts of one size
        return [
            replace(feature, expert=key)
            for key, expert in self.experts.items()
            for feature in look(expert, seen[self.sides[key]])
        ]

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        """Each expert's, under "experts.KEY."."""
        return sharded(dict(self.experts.items()), f"{prefix}experts.", sharded_offsets, metadata)
