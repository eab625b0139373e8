"""What Qwen2, Llama, Vicuna and Yi share: RMSNorm before each part, SwiGLU, rotary positions, grouped queries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt, model_validator

from megavlm.platform.config import Config
from megavlm.platform.errors import ConfigError

from ..costs import Cost, MicroBatch, Setting
from ..flops import Flops
from ..layout import require_divisible, require_stages
from .costs import costs_of

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

    from ..config import Parallel
    from ..contracts import BuildContext


class Decoder(Config):
    """Base of the decoders; its fields are their sizes. What tells the families apart are `qkv_bias` and defaults."""

    qkv_bias: ClassVar[bool] = False

    name: str
    layers: PositiveInt
    hidden: PositiveInt
    heads: PositiveInt
    kv_heads: PositiveInt  # query groups: heads that share keys and values
    ffn: PositiveInt  # width of the SwiGLU, once (gate and up each have it)
    vocab: PositiveInt
    max_positions: PositiveInt
    rope_base: float
    norm_eps: float
    tied: bool = False  # the output layer is the embedding

    @model_validator(mode="after")
    def _heads_fit(self) -> Decoder:
        require_divisible(self.hidden, "decoder.hidden", self.heads, "decoder.heads")
        require_divisible(self.heads, "decoder.heads", self.kv_heads, "decoder.kv_heads")
        return self

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads

    def parameters(self) -> int:
        """Parameters of the decoder, embeddings and output layer included, vocabulary padding not."""
        qkv = (self.heads + 2 * self.kv_heads) * self.head_dim
        layer = (self.hidden + self.qkv_bias) * qkv + self.hidden**2 + 3 * self.hidden * self.ffn + 2 * self.hidden
        tables = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.layers * layer + self.hidden + tables

    def flops(self, tokens: int, squares: int) -> Flops:
        """Forward FLOPs of samples with so many tokens in all, and so many squared tokens: causal attention is half."""
        linears = (self.heads + 2 * self.kv_heads) * self.head_dim * self.hidden + self.hidden**2
        linears = self.layers * (linears + 3 * self.hidden * self.ffn) + self.vocab * self.hidden
        return Flops(weights=2.0 * tokens * linears, mixing=2.0 * self.layers * squares * self.hidden)

    def costs(self, micro: MicroBatch, setting: Setting) -> tuple[Cost, Cost, Cost]:
        """(embedding, one layer, head) on one process, for a micro-batch; the head's weights are none where tied."""
        return costs_of(self, micro, setting)

    def check(self, parallel: Parallel) -> None:
        """Raise ConfigError where this decoder cannot be split over `parallel`."""
        require_divisible(self.heads, "decoder.heads", parallel.tp, "parallel.tp")
        require_divisible(self.ffn, "decoder.ffn", parallel.tp, "parallel.tp")
        require_stages(self.layers, parallel)
        if self.kv_heads % parallel.tp and parallel.tp % self.kv_heads:
            raise ConfigError(
                f"decoder.kv_heads {self.kv_heads} and parallel.tp {parallel.tp}: neither divides the other",
                where="parallel.tp",
                fix=f"use a tp that divides {self.kv_heads}",
            )

    def fp8_widths(self, parallel: Parallel) -> list[tuple[str, int, int]]:
        """Key, width and how often it is split, of what products in FP8 sum over or put out; queries and keys apart."""
        tp = parallel.tp
        return [("hidden", self.hidden, 1), ("hidden", self.hidden, tp), ("ffn", self.ffn, tp)]

    def padded_vocab(self, tp: int) -> int:
        """The vocabulary rounded up so that tp divides it; the extra logits are -inf."""
        return -(-self.vocab // tp) * tp

    def build(self, ctx: BuildContext, injection: Any) -> GPTModel:
        """megatron-core's GPTModel in this shape, its layers as the injection's spec wants them, weights not drawn."""
        from .model import build

        self.check(ctx.parallel)
        return build(self, ctx, injection)
