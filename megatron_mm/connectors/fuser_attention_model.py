"""The attentions of fuser_attention.py. All stand whole on every process: they are small beside the encoders."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megavlm.kernels.deformable_attention import deformable_attention

from .fuser_attention import POOLED

if TYPE_CHECKING:
    from ..contracts import BuildContext
    from .fuser_attention import Deformable, Global, Grid, LinearSRA


class DeformableAttention(nn.Module):
    """Deformable DETR's attention (arXiv 2010.04159, section 4.1), the parameters named as in its MSDeformAttn.

    A query's place is the centre of its own cell, the same on every level. At first its heads look in as many
    directions, their points one cell further each, all alike.
    """

    def __init__(self, shape: Deformable) -> None:
        super().__init__()
        self.shape = shape
        channels, places = shape.channels, shape.places
        self.sampling_offsets = nn.Linear(channels, places * 2)
        self.attention_weights = nn.Linear(channels, places)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)

    def mark_first_values(self) -> None:
        """Tell `backend.initialise` what is not drawn. The two linears it draws have Xavier's deviation, 1/sqrt(c)."""
        setattr(self.sampling_offsets.weight, "init_constant", 0.0)  # noqa: B010
        setattr(self.sampling_offsets.bias, "init_values", directions(self.shape))  # noqa: B010
        setattr(self.attention_weights.weight, "init_constant", 0.0)  # noqa: B010

    def forward(self, queries: Tensor, values: Tensor) -> Tensor:
        """[n, queries, channels], [n, cells, channels] -> [n, queries, channels].

        Where to look and how much is float32 at least: bfloat16 would round places on 24 x 24 to a tenth of a cell.
        """
        shape, wide = self.shape, torch.promote_types(queries.dtype, torch.float32)
        many = (len(queries), shape.queries, shape.heads, len(shape.levels), shape.points)
        offsets = self.sampling_offsets(queries).to(wide).view(*many, 2)
        sizes = torch.tensor(shape.levels, dtype=wide, device=queries.device).flip(-1)  # columns, rows
        centres = cell_centres(shape.grid, wide, queries.device)[:, None, None, None]
        shares = self.attention_weights(queries).to(wide).view(*many[:3], many[3] * many[4]).softmax(-1).view(many)
        projected = self.value_proj(values).unflatten(-1, (shape.heads, -1))
        locations = centres + offsets / sizes[:, None]
        return self.output_proj(deformable_attention(projected, shape.levels, locations, shares))


class GlobalAttention(nn.Module):
    """Softmax attention from every query to every key, of several heads, without positions."""

    def __init__(self, shape: Global) -> None:
        super().__init__()
        self.shape = shape
        self.query_proj = nn.Linear(shape.channels, shape.channels)
        self.key_value_proj = nn.Linear(shape.channels, 2 * shape.channels)
        self.output_proj = nn.Linear(shape.channels, shape.channels)

    def mark_first_values(self) -> None:
        """Nothing: all is drawn as any other linear."""

    def keys(self, values: Tensor) -> Tensor:
        """[n, cells, channels] -> [n, keys, channels]."""
        return values

    def forward(self, queries: Tensor, values: Tensor) -> Tensor:
        """[n, queries, channels], [n, cells, channels] -> [n, queries, channels]."""
        key, value = self.key_value_proj(self.keys(values)).chunk(2, dim=-1)
        q, k, v = (
            x.unflatten(-1, (self.shape.heads, -1)).transpose(1, 2) for x in (self.query_proj(queries), key, value)
        )
        return self.output_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class LinearSRAttention(GlobalAttention):
    """Keys are each level's 7 x 7 averages through Linear, LayerNorm and GELU (PVTv2's pvt_v2.py, `linear`)."""

    shape: LinearSRA

    def __init__(self, shape: LinearSRA) -> None:
        super().__init__(shape)
        self.reduction = nn.Linear(shape.channels, shape.channels)  # PVTv2's convolution of 1 x 1
        self.norm = nn.LayerNorm(shape.channels)

    def keys(self, values: Tensor) -> Tensor:
        """[n, cells, channels] -> [n, 49 * levels, channels], level after level."""
        levels = values.split([rows * columns for rows, columns in self.shape.levels], dim=1)
        pooled = [averaged(each, grid) for each, grid in zip(levels, self.shape.levels, strict=True)]
        return F.gelu(self.norm(self.reduction(torch.cat(pooled, dim=1))))


def averaged(values: Tensor, grid: Grid, side: int = POOLED) -> Tensor:
    """[n, rows * columns, c] -> [n, side * side, c]: adaptive average pooling.

    One matrix per axis: the backward pass of torch's own pooling is not deterministic on a GPU.
    """
    rows, columns = grid
    n, _, channels = values.shape
    halfway = _spans(rows, side, values) @ values.reshape(n, rows, columns * channels)
    return (_spans(columns, side, values) @ halfway.view(n, side, columns, channels)).flatten(1, 2)


def _spans(old: int, new: int, like: Tensor) -> Tensor:
    """[new, old]: of which old cells each new one is the average; spans overlap where `new` does not divide."""
    cell, span = torch.arange(old, device=like.device), torch.arange(new, device=like.device)[:, None]
    inside = ((cell >= span * old // new) & (cell < -(-(span + 1) * old // new))).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def cell_centres(grid: Grid, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(x, y) in 0..1 of each cell's centre, row-major: [rows * columns, 2]."""
    rows, columns = ((torch.arange(count, dtype=dtype, device=device) + 0.5) / count for count in grid)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def directions(shape: Deformable) -> Tensor:
    """The offsets in cells that attention begins with, float32 [heads * levels * points * 2].

    Head h looks in direction 2 pi h / heads, point p lies p + 1 cells away along the longer axis. On the CPU, so that
    they are there when the module is built without memory.
    """
    angles = torch.arange(shape.heads, dtype=torch.float32, device="cpu") * (2 * math.pi / shape.heads)
    way = torch.stack([angles.cos(), angles.sin()], dim=-1)
    way = way / way.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, shape.points + 1, device="cpu")[:, None]
    offsets = way[:, None, None] * steps  # [heads, 1, points, 2]
    return offsets.expand(-1, len(shape.levels), -1, -1).flatten()


def allocated(module: nn.Module, ctx: BuildContext) -> nn.Module:
    """A module built on the meta device, with memory of the context's dtype on the default device, nothing drawn."""
    module = module.to(ctx.params_dtype).to_empty(device=torch.get_default_device())
    for each in module.modules():
        if isinstance(each, DeformableAttention | GlobalAttention):
            each.mark_first_values()
    return module
