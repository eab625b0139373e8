"""What a transformer layer costs one process, decoder's or encoder's alike. Loads no torch."""

from __future__ import annotations

import dataclasses

from .costs import Cost, Setting


@dataclasses.dataclass(frozen=True)
class LayerShape:
    """A pre-norm layer: self-attention of `heads` queries over `kv_heads` keys and values, then an MLP.

    gated: SwiGLU, whose first product has twice the width `ffn`. causal: half of the square is computed.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    gated: bool
    causal: bool
    qkv_bias: bool = False
    biases: bool = False  # of all other products
    norm_weights: int = 1  # vectors to a norm: 1 of RMSNorm, 2 of LayerNorm


def layer_cost(shape: LayerShape, rows: int, squares: float, setting: Setting) -> Cost:
    """Of `rows` positions whose samples have `squares` squared positions in all, before any split."""
    raise NotImplementedError
