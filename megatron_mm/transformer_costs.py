"""What a transformer layer costs one process, decoder's or encoder's alike. Loads no torch.

What autograd keeps was read off megatron-core 0.16.1's TransformerLayer with the modules of `backend/specs.py`, and is
compared with one that is walked through (tests/megatron_mm/test_transformer_costs.py).
"""

from __future__ import annotations

import dataclasses

from .costs import Cost, Setting

FLOAT32 = 4


@dataclasses.dataclass(frozen=True)
class LayerShape:
    """A pre-norm layer: self-attention of `heads` queries over `kv_heads` keys and values, then an MLP.

    gated: SwiGLU, whose first product has twice the width `ffn`. causal: half of the square is computed, queries and
    keys are rotated, and samples are packed, which is what our decoders do and our encoders do not.
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

    @property
    def queries(self) -> int:
        """Width of all queries."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all keys, and of all values."""
        return self.kv_heads * self.head_dim

    @property
    def entered(self) -> int:
        """Width of the MLP's first product."""
        return self.ffn * (2 if self.gated else 1)


def layer_cost(shape: LayerShape, rows: float, squares: float, setting: Setting) -> Cost:
    """Of `rows` positions whose samples have `squares` squared positions in all, before any split."""
    return attention_cost(shape, rows, squares, setting) + mlp_cost(shape, rows, setting)


def own_rows(rows: float, setting: Setting) -> float:
    """Of a sequence's rows those that a process holds outside of products."""
    return rows / setting.cp / (setting.tp if setting.sequence_parallel else 1)


def norm_cost(width: int, rows: float, setting: Setting, vectors: int = 1) -> Cost:
    """RMSNorm (of 1 vector) or LayerNorm (of 2): keeps its input, what it divided by and, for the product, its output.

    An RMSNorm of single operations keeps its input in float32, and the same divided.
    """
    own, composed = own_rows(rows, setting), setting.composed_norms and vectors == 1
    entered = own * width * (FLOAT32 if composed else setting.size) + own * FLOAT32 * vectors
    out = own * width * setting.size
    divided = own * width * FLOAT32 if composed else 0.0
    return Cost(
        weights=vectors * width,
        kept=entered + divided + out,
        passing=entered,
        moved=2 * out + 3 * out / 2,  # itself, and its half of what adding two residuals to the hidden states moves
        entrance=out,
    )


def core_kept(shape: LayerShape, rows: float, setting: Setting) -> float:
    """Bytes that core attention itself keeps, which is what selective recomputation saves: its output, and a float32
    of each query and head."""
    return rows / setting.cp / setting.tp * (shape.queries * setting.size + shape.heads * FLOAT32)


def attention_cost(shape: LayerShape, rows: float, squares: float, setting: Setting) -> Cost:
    """Self-attention and the norm before it. Of queries and keys both are kept, as they are and rotated."""
    each, qkv = rows / setting.cp * setting.size / setting.tp, shape.queries + 2 * shape.keys
    rotated = shape.queries + shape.keys if shape.causal else 0
    angles = 4 * shape.head_dim * setting.tp if shape.causal else 0  # cosines and sines, of queries and of keys
    passing = each * (qkv + rotated + angles) + core_kept(shape, rows, setting)
    split = shape.hidden * (qkv + shape.queries) + shape.qkv_bias * qkv
    inner = Cost(
        weights=split // setting.tp + shape.biases * shape.hidden,
        kept=passing + each * shape.queries,
        passing=passing,
        products=2.0 * rows * shape.hidden * (qkv + shape.queries) / setting.cp / setting.tp,
        mixing=4.0 * squares * shape.queries / setting.cp / setting.tp / (2 if shape.causal else 1),
        moved=each * (2 * qkv * shape.qkv_bias + 12 * rotated + 2 * shape.queries),
        exchanged=exchanged(shape.hidden, rows, setting),
        operands=2 * own_rows(rows, setting) * shape.hidden + rows / setting.cp / setting.tp * (qkv + shape.queries),
        handed=2.0 * rows * shape.keys / setting.tp * setting.size if setting.cp > 1 else 0.0,
    )
    return norm_cost(shape.hidden, rows, setting, shape.norm_weights) + inner


def mlp_cost(shape: LayerShape, rows: float, setting: Setting) -> Cost:
    """The MLP and the norm before it. SwiGLU keeps the first product, its bent half, the other half plus an offset of
    0, and what the last product reads. The fullest moment is on the way back through it."""
    held = rows / setting.cp
    each, split = held * setting.size / setting.tp, shape.hidden * (shape.entered + shape.ffn)
    passing = each * (4 if shape.gated else 1) * shape.ffn
    back = own_rows(rows, setting) * shape.hidden + (held * shape.entered + shape.hidden * shape.ffn) / setting.tp
    inner = Cost(
        weights=(split + shape.biases * shape.entered) // setting.tp + shape.biases * shape.hidden,
        kept=passing + each * shape.ffn,
        passing=passing,
        spare=setting.size * back,  # the gradients of what came out, of SwiGLU's parts, and of the last weights
        products=2.0 * held * split / setting.tp,
        moved=each * (7 if shape.gated else 2) * shape.ffn,
        exchanged=exchanged(shape.hidden, rows, setting),
        operands=2 * own_rows(rows, setting) * shape.hidden + held / setting.tp * (shape.entered + shape.ffn),
    )
    return norm_cost(shape.hidden, rows, setting, shape.norm_weights) + inner


def exchanged(width: int, rows: float, setting: Setting) -> float:
    """Bytes that tensor parallelism sums after a block."""
    return rows / setting.cp * width * setting.size if setting.tp > 1 else 0.0
