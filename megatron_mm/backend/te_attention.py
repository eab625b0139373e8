"""Packed sequences through Transformer Engine's fused attention, and everything else through ours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from .attention import SDPAttention

FUSED = (torch.bfloat16, torch.float16)  # what cuDNN's fused kernels take


class EngineAttention(SDPAttention):
    """SDPAttention, with one fused kernel in place of its loop over the segments of a pack.

    Only there: with a KV cache megatron-core tells the engine "no mask", which lets a chunk of several new tokens see
    ahead; and under context parallelism the engine wants every sample cut into 2 * cp pieces, we cut the pack.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        **unused: Any,
    ) -> None:
        shape = (config, layer_number, attn_mask_type, attention_type, attention_dropout, softmax_scale)
        super().__init__(*shape, **unused)
        suits = attention_type == "self" and self.cp == 1 and config.params_dtype in FUSED
        self.fused = self.engine()(*shape) if suits else None

    @staticmethod
    def engine() -> type:
        """megatron-core's class over Transformer Engine's attention."""
        from megatron.core.extensions.transformer_engine import TEDotProductAttention

        return TEDotProductAttention

    def _packed(self, query: Tensor, key: Tensor, value: Tensor, packed: PackedSeqParams) -> Tensor:
        if self.fused is None:
            return super()._packed(query, key, value, packed)
        mask = AttnMaskType.causal if self.causal else AttnMaskType.no_mask
        out = self.fused(query, key, value, None, mask, packed_seq_params=without_padded_ends(packed))
        return out.view(query.shape)

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Nothing: attention has no weights, so checkpoints fit machines with and without Transformer Engine."""
        return {}


def without_padded_ends(packed: PackedSeqParams) -> PackedSeqParams:
    """What the engine is told: it would take padded ends for places in memory.

    Ours are one run over the whole pack, for megatron-core's rotary embedding alone (model.py).
    """
    return replace(packed, cu_seqlens_q_padded=None, cu_seqlens_kv_padded=None)
