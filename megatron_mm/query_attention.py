"""Attention in which every group of cells has one query: EVE's two (arXiv 2406.11832, section 3.1; published code).

With one query q to a group, q . (K x) is (K' q) . x, and a weighted mean of V x is V of the weighted mean of x. So no
key and no value of a cell is ever made: two products per query in place of two per cell.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from .contracts import BuildContext


class QueryAttention(nn.Module):
    """query + proj(softmax(q k / sqrt(channels)) v), with norms before q, k and v; published names.

    Scores are divided by the root of all channels, not of a head's: as published. `kv` holds the keys' rows, then the
    values'.
    """

    def __init__(self, ctx: BuildContext, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, channels**-0.5
        self.q = nn.Sequential(_norm(ctx, channels), _linear(ctx, channels, channels))
        self.kv: Any = nn.Sequential(_norm(ctx, channels), _linear(ctx, channels, 2 * channels))
        self.proj = _linear(ctx, channels, channels, bias=True)

    def forward(self, query: Tensor, cells: Tensor) -> Tensor:
        """Queries [n, channels], the cells of each [n, k, channels] -> [n, channels]."""
        cells = self.normed(cells)
        scores = torch.einsum("nhc,nkc->nhk", self.asks(query), cells)
        weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(cells.dtype)
        return self.answer(query, torch.einsum("nhk,nkc->nhc", weights, cells))

    def normed(self, cells: Tensor) -> Tensor:
        """Cells as `asks` and `answer` want them."""
        return self.kv[0](cells)

    def asks(self, query: Tensor) -> Tensor:
        """Queries [n, channels] -> [n, heads, channels], whose products with normed cells are the scores."""
        q = (self.q(query) * self.scale).unflatten(-1, (self.heads, -1))
        return torch.einsum("nhd,hdc->nhc", q, self._rows(0))

    def answer(self, query: Tensor, seen: Tensor) -> Tensor:
        """Each head's weighted mean of normed cells, [n, heads, channels], and the queries -> [n, channels]."""
        values = torch.einsum("nhc,hdc->nhd", seen, self._rows(1))
        return query + self.proj(values.flatten(1))

    def _rows(self, half: int) -> Tensor:
        """The keys' (0) or the values' (1) weight as [heads, of a head, channels]."""
        return self.kv[1].weight.unflatten(0, (2, self.heads, -1))[half]


def _norm(ctx: BuildContext, channels: int) -> nn.LayerNorm:
    return nn.LayerNorm(channels, dtype=ctx.params_dtype)


def _linear(ctx: BuildContext, channels: int, out: int, bias: bool = False) -> nn.Linear:
    return skip_init(nn.Linear, channels, out, bias=bias, device=torch.get_default_device(), dtype=ctx.params_dtype)
