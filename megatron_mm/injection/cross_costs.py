"""What gated cross-attention costs a layer on one process. Loads no torch.

Read off `cross_layer.py` and `SDPAttention.attend_samples`, which picks the rows of each sample and puts them back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..costs import Cost, MicroBatch, Setting
from ..decoders.costs import shape_of
from ..transformer_costs import core_kept, exchanged, mlp_cost, norm_cost, own_rows

if TYPE_CHECKING:
    from ..decoders.base import Decoder
    from .cross_attention import Gated


def cross_cost(spec: Gated, micro: MicroBatch, decoder: Decoder, setting: Setting) -> Cost:
    """Norm, attention to the context, gate; and the feed-forward with a norm and a gate, where it has its own."""
    gate = _gate(spec, micro, decoder, setting)
    cost = norm_cost(decoder.hidden, micro.positions, setting) + _attention(spec, micro, decoder, setting) + gate
    return cost + mlp_cost(shape_of(decoder), micro.positions, setting) + gate if spec.ffn else cost


def _attention(spec: Gated, micro: MicroBatch, decoder: Decoder, setting: Setting) -> Cost:
    """Queries of the sequence; keys and values of the whole context, which every process reads.

    Kept: queries as picked, keys and values, the mask in the activations' precision, what comes out of it, and that put
    back in its rows.
    """
    width, keys = decoder.hidden, 2 * spec.groups(decoder) * decoder.head_dim
    held = micro.positions / setting.cp
    rows, context = held * setting.size / setting.tp, micro.context * setting.size / setting.tp
    mask, core = micro.pairs / setting.cp * setting.size, core_kept(shape_of(decoder), micro.positions, setting)
    passing = rows * width + context * keys + mask + core
    return Cost(
        weights=2 * width * (width + keys // 2) // setting.tp,
        kept=passing + rows * width,
        passing=passing,
        spare=2 * own_rows(micro.positions, setting) * width * setting.size + width * width / setting.tp * setting.size,
        products=2.0 * (held * 2 * width**2 + micro.context * width * keys) / setting.tp,
        mixing=4.0 * micro.pairs * width / setting.cp / setting.tp,
        moved=rows * 7 * width + mask,
        exchanged=exchanged(width, micro.positions, setting),
    )


def _gate(spec: Gated, micro: MicroBatch, decoder: Decoder, setting: Setting) -> Cost:
    """Times a weight, which keeps what it scales for that weight's gradient."""
    if spec.gate == "none":
        return Cost()
    scaled = own_rows(micro.positions, setting) * decoder.hidden * setting.size
    return Cost(weights=decoder.hidden if spec.gate_size == "channel" else 1, kept=scaled, moved=3 * scaled)
