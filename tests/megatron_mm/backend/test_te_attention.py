"""What Transformer Engine's attention is told, and when it is asked: its place is taken by ours, with its signature.

What it computes is compared on a GPU, in test_gpu.py.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from megavlm.megatron_mm.backend.attention import SDPAttention
from megavlm.megatron_mm.backend.te_attention import EngineAttention


class Engine(SDPAttention):
    """megatron-core's TEDotProductAttention: the mask's type has no default there, and thd comes back flat."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Any, kind: AttnMaskType, **more: Any) -> Tensor:  # type: ignore[override]
        self.told = (mask, kind, more["packed_seq_params"])
        return super().forward(query, key, value, mask, kind, **more).flatten(1)


class Attention(EngineAttention):
    @staticmethod
    def engine() -> type:
        return Engine


def build(mask: AttnMaskType, kind: str = "self", cp: int = 1, dtype: torch.dtype = torch.bfloat16) -> Attention:
    config = SimpleNamespace(context_parallel_size=cp, attention_dropout=0.0, params_dtype=dtype)
    return Attention(config, layer_number=1, attn_mask_type=mask, attention_type=kind, softmax_scale=0.2)


def packed() -> tuple[list[Tensor], PackedSeqParams]:
    draw = torch.Generator().manual_seed(0)
    tensors = [torch.randn(12, heads, 8, generator=draw) for heads in (4, 2, 2)]
    ends = torch.tensor([0, 3, 4, 10, 12]).int()
    whole = torch.tensor([0, 12]).int()
    lengths = {"max_seqlen_q": 6, "max_seqlen_kv": 6}
    padded = {"cu_seqlens_q_padded": whole, "cu_seqlens_kv_padded": whole}
    return tensors, PackedSeqParams(qkv_format="thd", cu_seqlens_q=ends, cu_seqlens_kv=ends, **padded, **lengths)


@pytest.mark.parametrize("kind", [AttnMaskType.causal, AttnMaskType.no_mask])
def test_a_pack_goes_to_the_engine_without_padded_ends(kind: AttnMaskType) -> None:
    tensors, segments = packed()
    attention = build(kind)
    out = attention(*tensors, None, AttnMaskType.no_mask, packed_seq_params=segments)
    mask, told, seen = attention.fused.told
    assert mask is None and told is kind  # as it was built, whatever megatron-core says at run time
    assert seen.cu_seqlens_q_padded is None and seen.cu_seqlens_kv_padded is None
    assert seen.cu_seqlens_q is segments.cu_seqlens_q and seen.max_seqlen_q == 6 and seen.qkv_format == "thd"
    assert segments.cu_seqlens_q_padded is not None  # megatron-core's rotary embedding still reads it
    config = attention.config
    ours = SDPAttention(config, 1, kind, "self", softmax_scale=0.2)(*tensors, packed_seq_params=segments)
    assert out.shape == ours.shape == (12, 4, 8)
    assert torch.equal(out, ours)


@pytest.mark.parametrize("options", [{"kind": "cross"}, {"cp": 2}, {"dtype": torch.float32}])
def test_where_the_engine_does_not_suit_there_is_none(options: dict[str, Any]) -> None:
    assert build(AttnMaskType.causal, **options).fused is None
    tensors, segments = packed()
    attention = build(AttnMaskType.causal, dtype=torch.float32)
    ours = SDPAttention(attention.config, 1, AttnMaskType.causal, "self", softmax_scale=0.2)
    assert torch.equal(attention(*tensors, packed_seq_params=segments), ours(*tensors, packed_seq_params=segments))


def test_a_cache_never_goes_to_the_engine() -> None:
    """Three new tokens on six: the engine would be told "no mask"."""
    attention = build(AttnMaskType.causal)
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(n, 1, 2, 8, generator=draw) for n in (3, 6, 6))
    out = attention(query, key, value, None, AttnMaskType.no_mask)
    assert not hasattr(attention.fused, "told")
    ours = SDPAttention(attention.config, 1, AttnMaskType.causal, "self", softmax_scale=0.2)
    assert torch.equal(out, ours(query, key, value, None, AttnMaskType.no_mask))


def test_attention_has_nothing_to_save() -> None:
    assert build(AttnMaskType.causal).sharded_state_dict("prefix.", (), None) == {}
