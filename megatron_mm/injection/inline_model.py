"""Visual tokens written over the text embeddings at their positions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from megavlm.kernels.merge_tokens import merge_tokens
from megavlm.platform.errors import InputError

from ..contracts import PackedBatch


class InlineInjection(nn.Module):
    """Embeddings [s, 1, h] and visual tokens -> the decoder's input [s, 1, h]."""

    def forward(self, text: Tensor, visual: Tensor, batch: PackedBatch) -> tuple[Tensor, dict[str, Any]]:
        """Write `visual` [tokens, h] at `batch.visual_index`. No two tokens share a place: the backward has one order.

        Raises InputError when the pack has not as many places as there are visual tokens.
        """
        if len(visual) != len(batch.visual_index):
            raise InputError(
                f"{len(visual)} visual tokens for {len(batch.visual_index)} places in the sequence",
                where="pack",
                fix="pack the data again with this model's tokens per tile",
            )
        s, b, h = text.shape
        merged = merge_tokens(text.view(s * b, h), visual.to(text.dtype), batch.visual_index)
        return merged.view(s, b, h), {}
