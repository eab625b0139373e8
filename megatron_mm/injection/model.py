"""Visual tokens put where they go: over the text embeddings at their places, or side by side as a context."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from megavlm.kernels.merge_tokens import merge_tokens
from megavlm.platform.errors import InputError

from ..contracts import Context, PackedBatch
from .sight import Sight, sight


class Injected(nn.Module):
    """Has no weights: those of cross-attention are in the decoder's layers (cross_layer.py)."""

    def __init__(self, tokens_per_tile: int, tag_mask: bool = True) -> None:
        super().__init__()
        self.each, self.tag_mask = tokens_per_tile, tag_mask

    def merge(self, text: Tensor, batch: PackedBatch) -> Tensor:
        """Embeddings [s, 1, h] -> the decoder's input: inline tiles' tokens written at `batch.visual_index`.

        Under context parallelism s is this rank's share, and an index of -1 stands on another's. No two tokens share a
        place: the backward has one order. Raises InputError when the pack has not as many places as inline tokens.
        """
        if batch.visual is None or not len(batch.visual_index):
            return text
        values = self._tiles(batch.visual, batch.inline_tiles)
        if len(values) != len(batch.visual_index):
            raise InputError(
                f"{len(values)} visual tokens for {len(batch.visual_index)} places in the sequence",
                where="pack",
                fix="pack the data again with this model's tokens per tile",
            )
        index = batch.visual_index
        if len(text) < batch.position_ids.shape[1]:
            values, index = values[index >= 0], index[index >= 0]
        s, b, h = text.shape
        return merge_tokens(text.view(s * b, h), values.to(text.dtype), index).view(s, b, h)

    def beside(self, batch: PackedBatch, positions: Tensor) -> tuple[Tensor | None, Sight | None]:
        """The context [c, 1, h] and which of the rows at `positions` of the pack see which of it; None without one."""
        context, visual = batch.context, batch.visual
        if context is None or visual is None or not len(context.tiles):
            return None, None
        tokens = self._tiles(visual, context.tiles)
        widths = torch.full_like(context.tiles, self.each)
        if batch.tag_values is not None:
            tokens = _with_tags(tokens, batch.tag_values.to(tokens.dtype), context, self.each)
            widths = widths + torch.bincount(context.tag_tiles, minlength=len(widths))
        return tokens[:, None], sight(context, widths, positions, self.tag_mask)

    def _tiles(self, visual: Tensor, wanted: Tensor | None) -> Tensor:
        """Of the tokens [n * tokens_per_tile, h] of a pack's tiles those of the wanted ones, None for all."""
        return visual if wanted is None else visual.view(-1, self.each, visual.shape[-1])[wanted].flatten(0, 1)


def _with_tags(tokens: Tensor, tags: Tensor, context: Context, each: int) -> Tensor:
    """Each context tile's tag [t, h] before its tokens [m * each, h]."""
    of_tokens = torch.arange(len(context.tiles), device=tokens.device).repeat_interleave(each)
    order = torch.cat([2 * context.tag_tiles, 2 * of_tokens + 1]).argsort(stable=True)
    return torch.cat([tags, tokens])[order]
