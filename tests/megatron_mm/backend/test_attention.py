"""SDPAttention against softmax written out, head by head."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from megavlm.megatron_mm.backend.attention import SDPAttention

HEADS, WIDTH = 4, 8


def build(mask: AttnMaskType, kind: str = "self", cp: int = 1) -> SDPAttention:
    config = SimpleNamespace(context_parallel_size=cp, attention_dropout=0.0)
    return SDPAttention(config, layer_number=1, attn_mask_type=mask, attention_type=kind)


def draw(tokens: int, heads: int = HEADS, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(tokens, batch, heads, WIDTH, generator=torch.Generator().manual_seed(seed + tokens + heads))


def naive(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for every batch and head by itself; `seen` bool [b, sq, sk]."""
    sq, batch, heads, width = query.shape
    out = torch.empty(sq, batch, heads, width)
    for b in range(batch):
        for h in range(heads):
            group = h * key.shape[2] // heads
            scores = query[:, b, h] @ key[:, b, group].T / math.sqrt(width)
            out[:, b, h] = scores.masked_fill(~seen[b], float("-inf")).softmax(-1) @ value[:, b, group]
    return out.reshape(sq, batch, heads * width)


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (1, 6), (3, 6)])
@pytest.mark.parametrize("mask", [AttnMaskType.causal, AttnMaskType.no_mask])
def test_self_attention(mask: AttnMaskType, queries: int, keys: int, groups: int) -> None:
    """Square; one new token on a cache; three new tokens on a cache, which must not see ahead."""
    q, k, v = draw(queries), draw(keys, groups), draw(keys, groups, seed=9)
    seen = torch.ones(queries, keys, dtype=torch.bool)
    if mask is AttnMaskType.causal:
        seen = torch.arange(keys)[None] <= torch.arange(keys - queries, keys)[:, None]
    # Past the prompt megatron-core says no_mask at run time, whatever the layer was built as.
    out = build(mask)(q, k, v, None, attn_mask_type=AttnMaskType.no_mask)
    torch.testing.assert_close(out, naive(q, k, v, seen.expand(2, -1, -1)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mask", [AttnMaskType.causal, AttnMaskType.no_mask])
def test_hidden_keys(mask: AttnMaskType) -> None:
    """A padding mask, True where hidden, on top of causality."""
    q, k, v = draw(5), draw(5, 2), draw(5, 2, seed=9)
    hidden = torch.zeros(2, 1, 5, 5, dtype=torch.bool)
    hidden[1, :, 2:, 1] = True
    seen = ~hidden[:, 0]
    if mask is AttnMaskType.causal:
        seen = seen & torch.ones(5, 5, dtype=torch.bool).tril()
    torch.testing.assert_close(build(mask)(q, k, v, hidden), naive(q, k, v, seen), rtol=1e-5, atol=1e-6)


def test_cross_attention_is_never_causal() -> None:
    q, k, v = draw(5), draw(7), draw(7, seed=9)
    hidden = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(1)) < 0.4
    hidden[..., 0] = False
    out = build(AttnMaskType.causal, "cross")(q, k, v, hidden)
    torch.testing.assert_close(out, naive(q, k, v, ~hidden[:, 0]), rtol=1e-5, atol=1e-6)


LENGTHS = (3, 1, 6, 0, 2)


def packed() -> PackedSeqParams:
    ends = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    return PackedSeqParams(qkv_format="thd", cu_seqlens_q=ends, cu_seqlens_kv=ends)


def test_packed_samples_as_if_alone() -> None:
    q, k, v = (t[:, 0] for t in (draw(12, batch=1), draw(12, 2, batch=1), draw(12, 2, batch=1, seed=9)))
    attention = build(AttnMaskType.causal)
    samples = zip(*(t.split(LENGTHS) for t in (q, k, v)), strict=True)
    alone = [attention(*(t[:, None] for t in sample), None) for sample in samples]
    out = attention(q, k, v, None, packed_seq_params=packed())
    assert out.shape == q.shape
    torch.testing.assert_close(out.flatten(1), torch.cat(alone).flatten(1), rtol=1e-5, atol=1e-6)


def test_packed_samples_never_meet() -> None:
    """The gradient of one sample's output with respect to any other sample's input is exactly zero."""
    q, k, v = (
        t[:, 0].requires_grad_() for t in (draw(12, batch=1), draw(12, 2, batch=1), draw(12, 2, batch=1, seed=9))
    )
    out = build(AttnMaskType.causal)(q, k, v, None, packed_seq_params=packed())
    out[4:10].sum().backward()
    for t in (q, k, v):
        assert t.grad[4:10].abs().sum() > 0
        assert t.grad[:4].abs().sum() == 0 and t.grad[10:].abs().sum() == 0
