"""What a transformer layer costs one process, decoder's or encoder's alike. Loads no torch.

What autograd keeps was read off megatron-core 0.16.1's TransformerLayer with the modules of `backend/specs.py`, and is
compared with a trace of it (tests/megatron_mm/test_transformer_costs.py).
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


def layer_cost(shape: LayerShape, rows: int, squares: float, setting: Setting) -> Cost:
    """Of `rows` positions whose samples have `squares` squared positions in all, before any split."""
    held, kept = rows / setting.cp, core_kept(shape, rows, setting)
    entrance = own_rows(rows, setting) * shape.hidden * setting.size
    products = 2.0 * held * (shape.hidden * (2 * shape.queries + 2 * shape.keys + shape.entered + shape.ffn))
    return Cost(
        weights=layer_weights(shape, setting.tp),
        kept=2 * norm_kept(shape, rows, setting) + _attention_kept(shape, rows, setting) + kept
        + _mlp_kept(shape, rows, setting),
        spare=_spare(shape, rows, setting),
        products=products / setting.tp,
        mixing=4.0 * squares * shape.queries / setting.cp / setting.tp / (2 if shape.causal else 1),
        moved=_moved(shape, rows, setting),
        exchanged=2.0 * held * shape.hidden * setting.size if setting.tp > 1 else 0.0,
        entrance=entrance,
    )  # fmt: skip


def own_rows(rows: int, setting: Setting) -> float:
    """Of a sequence's rows those that a process holds outside of products."""
    return rows / setting.cp / (setting.tp if setting.sequence_parallel else 1)


def layer_weights(shape: LayerShape, tp: int) -> int:
    """Parameters on one of `tp` processes: norms, and biases that are added after a sum, are whole on each."""
    qkv = shape.queries + 2 * shape.keys
    split = shape.hidden * (qkv + shape.queries + shape.entered + shape.ffn)
    split += shape.qkv_bias * qkv + shape.biases * shape.entered
    return 2 * shape.norm_weights * shape.hidden + split // tp + 2 * shape.biases * shape.hidden


def norm_kept(shape: LayerShape, rows: int, setting: Setting) -> float:
    """Bytes that a norm keeps: input, output, and what it divided by; composed of single operations also float32."""
    inner = FLOAT32 * 2 if setting.composed_norms and shape.norm_weights == 1 else setting.size
    return own_rows(rows, setting) * (shape.hidden * (inner + setting.size) + FLOAT32 * shape.norm_weights)


def core_kept(shape: LayerShape, rows: int, setting: Setting) -> float:
    """Bytes that core attention itself keeps, its inputs apart: what selective recomputation saves.

    Its output and a float32 per query and head; under context parallelism the whole sequence's keys and values.
    """
    held, keys = rows / setting.cp, 2 * shape.keys / setting.tp * rows * setting.size
    out = held / setting.tp * (shape.queries * setting.size + shape.heads * FLOAT32)
    return out + (keys if setting.cp > 1 else 0.0)


def _attention_kept(shape: LayerShape, rows: int, setting: Setting) -> float:
    """What the first product makes, queries and keys with their angles, and what the last product reads."""
    width = (shape.queries + 2 * shape.keys + shape.queries) / setting.tp
    if shape.causal:
        width += (shape.queries + shape.keys) / setting.tp + 4 * shape.head_dim
    return rows / setting.cp * width * setting.size


def _mlp_kept(shape: LayerShape, rows: int, setting: Setting) -> float:
    """SwiGLU keeps both halves, the gate's sigmoid product, the other half plus its offset, and their product."""
    width = (5 if shape.gated else 2) * shape.ffn / setting.tp
    return rows / setting.cp * width * setting.size


def _spare(shape: LayerShape, rows: int, setting: Setting) -> float:
    """The MLP's gradients on their way back: about as wide as what it keeps, less what is freed meanwhile."""
    return rows / setting.cp * 3 * shape.ffn / setting.tp * setting.size


def _moved(shape: LayerShape, rows: int, setting: Setting) -> float:
    """Norms and residuals read and write the hidden states; biases, angles and SwiGLU are operations of their own."""
    qkv = shape.queries + 2 * shape.keys
    inside = 2.0 * qkv * shape.qkv_bias + (7 if shape.gated else 2) * shape.ffn + 2 * shape.queries
    if shape.causal:
        inside += 12 * (shape.queries + shape.keys) + 2 * shape.queries
    outside = 2 * (2 + 3) * shape.hidden
    held = rows / setting.cp / setting.tp
    return setting.size * (own_rows(rows, setting) * outside + held * inside)
