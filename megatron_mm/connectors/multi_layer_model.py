"""Layers of one expert joined by concatenation, mean, weights or a feature pyramid; and the MLP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ..contracts import BuildContext, FeatureMap, VisualTokens
from ..maps import MapShape
from .common_grid import on_grid
from .mlp_model import as_tokens, projector_of

if TYPE_CHECKING:
    from .multi_layer import MultiLayer


class MultiLayerModel(MegatronModule):
    """k feature maps of n tiles -> n * rows * columns visual tokens."""

    def __init__(self, spec: MultiLayer, ctx: BuildContext, maps: Sequence[MapShape], width: int) -> None:
        projector = projector_of(spec, ctx, spec.fused(maps), width)
        super().__init__(config=projector.config)
        self.grid = spec.common_grid(maps)
        self.fuser = FUSERS[spec.mode](ctx, [each.channels for each in maps], spec.fpn_channels)
        self.projector = projector

    def forward(self, features: list[FeatureMap]) -> VisualTokens:
        """FeatureMaps in the order of `maps` -> VisualTokens with values [n * rows * columns, width]."""
        fused = self.fuser([on_grid(each, *self.grid) for each in features])
        return as_tokens(self.projector(fused.flatten(0, 2)), features[0])


class Fuser(nn.Module):
    """k maps [n, rows, columns, channels] -> one. A subclass says `forward`."""

    def __init__(self, ctx: BuildContext, channels: Sequence[int], pyramid: int) -> None:
        super().__init__()


class Concat(Fuser):
    """Channel by channel."""

    def forward(self, maps: list[Tensor]) -> Tensor:
        """[n, rows, columns, channels of all]."""
        return torch.cat(maps, dim=-1)


class Average(Fuser):
    """The mean."""

    def forward(self, maps: list[Tensor]) -> Tensor:
        """[n, rows, columns, channels]."""
        return torch.stack(maps).mean(dim=0)


class Weighted(Fuser):
    """A convex combination that is learnt: the softmax of a number per layer. These are zero at first: the mean.

    Our guess: the comparison says no more than that weights are learnt.
    """

    def __init__(self, ctx: BuildContext, channels: Sequence[int], pyramid: int) -> None:
        super().__init__(ctx, channels, pyramid)
        self.scores = nn.Parameter(torch.zeros(len(channels), dtype=ctx.params_dtype))
        setattr(self.scores, "init_constant", 0.0)  # noqa: B010

    def forward(self, maps: list[Tensor]) -> Tensor:
        """[n, rows, columns, channels]."""
        stacked = torch.stack(maps)
        weights = self.scores.softmax(dim=0, dtype=torch.promote_types(stacked.dtype, torch.float32))
        return torch.einsum("k,knyxc->nyxc", weights.to(stacked.dtype), stacked)


class Pyramid(Fuser):
    """A feature pyramid, deepest layer last: every level 1 x 1, plus the sum of the deeper ones, 3 x 3.

    Our guess: ViT layers have one size, so nothing is scaled up between levels; and since the MLP takes one map, the
    levels are concatenated.
    """

    def __init__(self, ctx: BuildContext, channels: Sequence[int], pyramid: int) -> None:
        super().__init__(ctx, channels, pyramid)
        put = {"device": torch.get_default_device(), "dtype": ctx.params_dtype}
        self.lateral = nn.ModuleList(skip_init(nn.Conv2d, each, pyramid, 1, **put) for each in channels)
        self.output = nn.ModuleList(skip_init(nn.Conv2d, pyramid, pyramid, 3, padding=1, **put) for _ in channels)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """[n, rows, columns, levels * pyramid], in the order of the maps."""
        merged, levels = None, []
        for x, lateral, output in zip(maps[::-1], self.lateral[::-1], self.output[::-1], strict=True):
            level = lateral(x.movedim(-1, 1))
            merged = level if merged is None else merged + level
            levels.append(output(merged).movedim(1, -1))
        return torch.cat(levels[::-1], dim=-1)


FUSERS: Mapping[str, Callable[[BuildContext, Sequence[int], int], Fuser]] = {
    "concat": Concat,
    "average": Average,
    "weighted": Weighted,
    "fpn": Pyramid,
}
