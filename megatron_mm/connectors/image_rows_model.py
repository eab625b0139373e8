"""Class and row-end tokens among the cells of tiles of any size, and the MLP, all tiles at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from ..backend.transformer import transformer_config, whole
from ..contracts import BuildContext, FeatureMap, Sizes, VisualTokens
from ..query_attention import QueryAttention
from .mlp_model import Projector
from .segments import softmax_means

if TYPE_CHECKING:
    from .image_rows import ImageRows


class ImageRowsModel(MegatronModule):
    """The feature map of n tiles -> [class, row 0, end, row 1, end, ...] of each.

    The parameters have the published names: class_embedding, split_embedding (the end of a row), global_attention, and
    projector for what is called mm_projector there.
    """

    def __init__(self, spec: ImageRows, ctx: BuildContext, channels: int, width: int) -> None:
        projector = Projector(ctx, channels, width, spec.hidden, spec.layers) if spec.layers else None
        super().__init__(config=_config(ctx, width) if projector is None else projector.config)
        self.class_embedding = _embedding(ctx, channels)
        self.split_embedding = _embedding(ctx, channels)
        self.global_attention = QueryAttention(ctx, channels, spec.heads) if spec.class_attention else None
        self.projector = projector

    def forward(self, features: list[FeatureMap]) -> VisualTokens:
        """One FeatureMap with values [cells, channels] -> VisualTokens with values [tokens, width]."""
        (feature,) = features
        grids = feature.grids if feature.grid is None else (feature.grid,) * len(feature.images)
        own = torch.cat([feature.values, self._class_tokens(feature.values, grids), self.split_embedding[None]])
        own = own if self.projector is None else self.projector(own)  # a row's end is alike everywhere: one is enough
        places, counts = _order(grids, own.device)
        ends = own[-1:].expand(sum(rows for rows, _ in grids), -1)
        parts = torch.cat([own[:-1], ends])
        # A copy to each place once, so that the backward pass only copies too: an index would add.
        values = torch.empty_like(parts).index_copy_(0, places, parts)
        return VisualTokens(values, feature.images.repeat_interleave(counts, output_size=len(values)))

    def _class_tokens(self, cells: Tensor, grids: Sizes) -> Tensor:
        """[tiles, channels]: after the cells' own attention, as published."""
        query = self.class_embedding[None]
        if self.global_attention is None:
            return query.expand(len(grids), -1)
        attention, counts = self.global_attention, [rows * columns for rows, columns in grids]
        (asks,) = attention.asks(query)
        return attention.answer(query, softmax_means(attention.normed(cells), asks, counts))


def _order(grids: Sizes, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where all cells go, then all class tokens, then all ends of rows; and how many tokens each tile has."""
    rows, columns = torch.tensor(grids, dtype=torch.int64, device=device).view(-1, 2).T
    all_rows, all_cells = sum(down for down, _ in grids), sum(down * across for down, across in grids)
    tile = torch.arange(len(grids), device=device).repeat_interleave(rows, output_size=all_rows)  # of each row
    widths = columns[tile]
    others = tile + 1 + torch.arange(all_rows, device=device)  # class tokens and ends before each row
    cells = torch.arange(all_cells, device=device) + others.repeat_interleave(widths, output_size=all_cells)
    counts = rows * (columns + 1) + 1
    return torch.cat([cells, counts.cumsum(0) - counts, widths.cumsum(0) + others]), counts


def _config(ctx: BuildContext, width: int) -> TransformerConfig:
    """Attention there is none; TransformerConfig wants tp to divide its heads."""
    return transformer_config(whole(ctx), hidden_size=width, num_layers=1, num_attention_heads=ctx.parallel.tp)


def _embedding(ctx: BuildContext, channels: int) -> nn.Parameter:
    parameter = nn.Parameter(torch.empty(channels, dtype=ctx.params_dtype, device=torch.get_default_device()))
    setattr(parameter, "init_std", 1.0)  # noqa: B010  # as published
    return parameter
