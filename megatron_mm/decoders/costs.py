"""What a decoder costs one process: its embedding, a layer, and what makes losses of the last one. Loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..costs import Cost, MicroBatch, Setting
from ..transformer_costs import FLOAT32, LayerShape, layer_cost, norm_cost

if TYPE_CHECKING:
    from .base import Decoder


def shape_of(decoder: Decoder) -> LayerShape:
    """A layer of it."""
    return LayerShape(
        hidden=decoder.hidden,
        heads=decoder.heads,
        kv_heads=decoder.kv_heads,
        head_dim=decoder.head_dim,
        ffn=decoder.ffn,
        gated=True,
        causal=True,
        qkv_bias=decoder.qkv_bias,
    )


def costs_of(decoder: Decoder, micro: MicroBatch, setting: Setting) -> tuple[Cost, Cost, Cost]:
    """(embedding, one layer, head), the head with the output layer's weights, which a tied decoder has not again."""
    layer = layer_cost(shape_of(decoder), micro.positions, micro.squares, setting)
    return _embedding(decoder, micro, setting), layer, _head(decoder, micro, setting)


def _embedding(decoder: Decoder, micro: MicroBatch, setting: Setting) -> Cost:
    """Text embeddings, with visual tokens written over them, whole before a split: two tensors and the gradient of
    the table, which torch makes anew for every micro-batch."""
    table, hidden = _table(decoder, setting), _hidden(decoder, micro, setting)
    return Cost(
        weights=table,
        spare=hidden + max(hidden, float(table * setting.size)),
        moved=4 * hidden,
        exchanged=hidden if setting.tp > 1 else 0.0,
    )


def _head(decoder: Decoder, micro: MicroBatch, setting: Setting) -> Cost:
    """The last norm, the output layer, and the cross entropy, which keeps its softmax in float32.

    Beside it at one time: the logits as they come, twice where padding is hidden; or, on the way back, their gradient
    and that of the weights, once the softmax is gone.
    """
    norm, table = norm_cost(decoder.hidden, micro.positions, setting), _table(decoder, setting)
    width = decoder.padded_vocab(setting.tp) / setting.tp
    rows = micro.positions / setting.cp
    hidden, softmax, logits = (
        rows * each for each in (decoder.hidden * setting.size, width * FLOAT32, width * setting.size)
    )
    copies = 1 if decoder.padded_vocab(setting.tp) == decoder.vocab else 2
    forward = logits * (copies if setting.size < FLOAT32 else copies - 1)
    back = logits + hidden + table * setting.size - softmax
    head = Cost(
        weights=0 if decoder.tied else table,
        kept=softmax,
        passing=softmax,
        spare=max(forward, back),
        products=2.0 * rows * width * decoder.hidden,
        moved=logits + 4 * softmax,
        exchanged=hidden if setting.tp > 1 else 0.0,
    )
    return norm + head


def _table(decoder: Decoder, setting: Setting) -> int:
    return decoder.padded_vocab(setting.tp) // setting.tp * decoder.hidden


def _hidden(decoder: Decoder, micro: MicroBatch, setting: Setting) -> float:
    return micro.positions / setting.cp * decoder.hidden * setting.size
