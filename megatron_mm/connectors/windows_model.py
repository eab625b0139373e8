"""Attention to co-located windows, and its MLP."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ..contracts import BuildContext, FeatureMap, VisualTokens
from ..maps import MapShape
from .common_grid import on_grid
from .mlp_model import as_tokens, projector_of
from .windows import asking_and_asked

if TYPE_CHECKING:
    from .windows import Windows


class WindowsModel(MegatronModule):
    """Feature maps of n tiles -> n * grid * grid visual tokens."""

    def __init__(self, spec: Windows, ctx: BuildContext, maps: Sequence[MapShape], width: int) -> None:
        asking, others = asking_and_asked(maps)
        projector = projector_of(spec, ctx, asking.channels, width)
        super().__init__(config=projector.config)
        self.grid = spec.grid
        self.sides = [spec.sides(each) for each in others]
        self.fuser = WindowAttention(ctx, asking.channels, [each.channels for each in others], spec.dim)
        self.projector = projector

    def forward(self, features: list[FeatureMap]) -> VisualTokens:
        """FeatureMaps in the order of `maps` -> VisualTokens with values [n * grid * grid, width]."""
        asking = on_grid(features[0], self.grid, self.grid)
        others = []
        for feature, (down, across) in zip(features[1:], self.sides, strict=True):
            others.append(windows(on_grid(feature, self.grid * down, self.grid * across), self.grid))
        return as_tokens(self.projector(self.fuser(asking, others).flatten(0, 2)), features[0])


class WindowAttention(nn.Module):
    """x + softmax(q k / sqrt(dim)) v, one head, over the windows of all other maps at once."""

    def __init__(self, ctx: BuildContext, channels: int, others: Sequence[int], dim: int) -> None:
        super().__init__()
        self.queries = _normed_linear(ctx, channels, dim)
        self.keys = nn.ModuleList(_normed_linear(ctx, each, dim) for each in others)
        self.values = nn.ModuleList(_normed_linear(ctx, each, channels) for each in others)

    def forward(self, asking: Tensor, others: list[Tensor]) -> Tensor:
        """[n, grid, grid, channels] and [n, grid, grid, cells, channels of each other] -> [n, grid, grid, channels]."""
        queries = self.queries(asking)
        keys = torch.cat([linear(seen) for linear, seen in zip(self.keys, others, strict=True)], dim=3)
        values = torch.cat([linear(seen) for linear, seen in zip(self.values, others, strict=True)], dim=3)
        scores = torch.einsum("nyxd,nyxmd->nyxm", queries, keys) / math.sqrt(queries.shape[-1])
        weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(values.dtype)
        return asking + torch.einsum("nyxm,nyxmc->nyxc", weights, values)


def windows(tiles: Tensor, grid: int) -> Tensor:
    """[n, grid * a, grid * b, c] -> [n, grid, grid, a * b, c]: the cells that cover each place, row by row."""
    blocks = tiles.unflatten(2, (grid, -1)).unflatten(1, (grid, -1))  # [n, grid, a, grid, b, c]
    return blocks.transpose(2, 3).flatten(3, 4)


def _normed_linear(ctx: BuildContext, channels: int, out: int) -> nn.Sequential:
    device = torch.get_default_device()
    linear = skip_init(nn.Linear, channels, out, device=device, dtype=ctx.params_dtype)
    return nn.Sequential(nn.LayerNorm(channels, dtype=ctx.params_dtype), linear)
