"""One core attention for every use: packed, causal, bidirectional, cross and grouped-query, on CPU and GPU alike."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from .context import gather_sequence, pieces

CAUSAL_TYPES = (AttnMaskType.causal, AttnMaskType.padding_causal)


class SDPAttention(MegatronModule):
    """`core_attention` for megatron-core's SelfAttention and CrossAttention, on torch's scaled dot product attention.

    Whether it is causal is fixed when it is built (`attn_mask_type`). The type handed over at run time is ignored:
    megatron-core says "no mask" there once a KV cache holds something, which would let a chunk of several new
    tokens see ahead. Instead a causal query of n tokens is taken to be the LAST n of the keys.
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
        super().__init__(config=config)
        self.cp = config.context_parallel_size
        self.causal = attention_type == "self" and attn_mask_type in CAUSAL_TYPES
        self.scale = softmax_scale
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Query [sq, b, heads, d], key and value [sk, b, groups, d] -> [sq, b, heads * d].

        Packed (`qkv_format` "thd"): query [t, heads, d], key and value [t, groups, d] -> [t, heads, d], where a
        segment sees only itself. Under context parallelism t is this rank's share of a sequence (context.py), and
        cu_seqlens are the whole one's. `attention_mask` bool [b or 1, 1, sq, sk] is True where a key is HIDDEN.
        """
        if packed_seq_params is not None and packed_seq_params.qkv_format == "thd":
            attend = self._packed if self.cp == 1 else self._shared_out
            return attend(query, key, value, packed_seq_params)
        q, k, v = (t.permute(1, 2, 0, 3) for t in (query, key, value))
        mask = None if attention_mask is None else ~attention_mask
        out = self._attend(q, k, v, mask)
        return out.permute(2, 0, 1, 3).flatten(2)

    def _packed(self, query: Tensor, key: Tensor, value: Tensor, packed: PackedSeqParams) -> Tensor:
        """Attention segment by segment: what was packed together never meets."""
        query_lengths = packed.cu_seqlens_q.diff().tolist()
        key_lengths = packed.cu_seqlens_kv.diff().tolist()
        parts = zip(query.split(query_lengths), key.split(key_lengths), value.split(key_lengths), strict=True)
        outs = []
        for q, k, v in ((t.transpose(0, 1)[None] for t in part) for part in parts if len(part[0])):
            outs.append(self._attend(q, k, v, None)[0].transpose(0, 1))
        return torch.cat(outs)

    def _shared_out(self, query: Tensor, key: Tensor, value: Tensor, packed: PackedSeqParams) -> Tensor:
        """This rank's queries against the keys before them, which all ranks hand round."""
        key, value = gather_sequence(torch.stack([key, value], dim=1)).unbind(1)
        runs = pieces(len(key), self.cp, parallel_state.get_context_parallel_rank())
        return self.attend_runs(query, key, value, packed.cu_seqlens_q, runs)

    def attend_runs(
        self, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, runs: tuple[range, range]
    ) -> Tensor:
        """The queries [t, heads, d] at the positions `runs` of a packed sequence -> [t, heads, d].

        Keys and values [s, groups, d] are the whole sequence's, whose segments cu_seqlens int32 [segments + 1] bound.
        """
        outs = []
        for run, queries in zip(runs, query.chunk(2), strict=True):
            for start, end in pairwise(cu_seqlens.tolist()):
                first, last = max(start, run.start), min(end, run.stop)
                seen = last if self.causal else end
                if first < last:
                    q, k, v = queries[first - run.start : last - run.start], key[start:seen], value[start:seen]
                    q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
                    outs.append(self._attend(q, k, v, None)[0].transpose(0, 1))
        return torch.cat(outs)

    def attend_samples(self, query: Tensor, key: Tensor, value: Tensor, samples: Sequence[Any]) -> Tensor:
        """Query [s, heads, d], key and value [c, groups, d] -> [s, heads, d], zeros in rows that see nothing.

        Each of `samples` is (rows int64 [q] of the query, a slice of the keys, bool [q, keys]: which of them are seen).
        """
        if not samples:
            return torch.zeros_like(query)
        outs = []
        for rows, keys, seen in samples:
            q, k, v = (t.transpose(0, 1)[None] for t in (query[rows], key[keys], value[keys]))
            outs.append(self._attend(q, k, v, seen)[0].transpose(0, 1))
        return torch.zeros_like(query).index_copy(0, torch.cat([rows for rows, _, _ in samples]), torch.cat(outs))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """q [b, heads, sq, d], k and v [b, groups, sk, d] -> [b, heads, sq, d]; mask is True where a key is SEEN."""
        square = q.shape[2] == k.shape[2]
        if self.causal and q.shape[2] > 1 and not (square and mask is None):
            mask = _and(_last_queries(q.shape[2], k.shape[2], q.device), mask)
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal and square and mask is None,
            scale=self.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )


def _last_queries(queries: int, keys: int, device: torch.device) -> Tensor:
    """Bool [queries, keys], True where query i, at position keys - queries + i, may see a key."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def _and(first: Tensor, second: Tensor | None) -> Tensor:
    return first if second is None else first & second
