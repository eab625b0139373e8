"""Gated cross-attention (NVLM-X): the decoder's sequence holds the tags alone, and some layers read the tiles.

The paper (arXiv 2409.11402, 4.3 and figure 3) says that gated cross-attention stands in every sixth or eighth layer
between self-attention and feed-forward, and that a tag attends to its own tile alone. What else it leaves open is a key
here, marked as our guess.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import NonNegativeInt, PositiveInt

from megavlm.platform.errors import ConfigError

from ..costs import Cost, MicroBatch, Setting
from ..flops import Flops
from ..layout import require_divisible
from .base import Injection
from .cross_costs import cross_cost
from .tags import Placement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from megatron.core.transformer.spec_utils import ModuleSpec

    from megavlm.platform.images import TilePlace

    from ..config import Parallel
    from ..contracts import BuildContext
    from ..decoders.base import Decoder
    from .model import Injected


class Gated(Injection):
    """Gated cross-attention in some layers. With gates at 0 the model is its text backbone, exactly."""

    has_context: ClassVar[bool] = True

    every: PositiveInt  # layers from one cross-attention to the next: 8 of 80 for the 72B, 6 of 60 for the 34B
    first: NonNegativeInt | None = None  # number of the first, from 0. Our guess: every - 1, as in open Flamingo code
    where: Literal["inside", "before"] = "inside"  # of the layer: figure 3's order, or before self-attention (Flamingo)
    gate: Literal["tanh", "linear", "none"] = "tanh"  # our guess: Flamingo's
    gate_init: float = 0.0  # our guess: Flamingo's, so that training begins at the text backbone
    gate_size: Literal["layer", "channel"] = "layer"  # our guess: one number to a layer, as Flamingo has
    ffn: bool = False  # a gated feed-forward of its own after it. Our guess: none, as figure 3 draws it
    kv_heads: PositiveInt | None = None  # our guess: the decoder's, grouped as its queries are
    tag_mask: bool = True  # a tag sees its own tile alone; false: what any text sees

    def crosses(self, layer: int) -> bool:
        """Whether the decoder's layer of this number, from 0, has cross-attention."""
        first = self.every - 1 if self.first is None else self.first
        return layer >= first and (layer - first) % self.every == 0

    def count(self, decoder: Decoder) -> int:
        """How many of the decoder's layers have it."""
        return sum(self.crosses(layer) for layer in range(decoder.layers))

    def groups(self, decoder: Decoder) -> int:
        """Heads of keys and values."""
        return self.kv_heads or decoder.kv_heads

    def parameters(self, decoder: Decoder) -> int:
        """Cross-attention layers with norm, projections and gate; the feed-forward too where it has its own."""
        width, gate = decoder.hidden, decoder.hidden if self.gate_size == "channel" else 1
        gate *= self.gate != "none"
        each = width + self._linears(decoder) + gate
        own = width + 3 * width * decoder.ffn + gate if self.ffn else 0
        return self.count(decoder) * (each + own)

    def _linears(self, decoder: Decoder) -> int:
        return 2 * decoder.hidden**2 + 2 * decoder.hidden * self.groups(decoder) * decoder.head_dim

    def flops(self, tokens: int, context: int, pairs: int, decoder: Decoder) -> Flops:
        """See `Injection`: queries and output for the text, keys and values for the context."""
        width, keys = decoder.hidden, 2 * self.groups(decoder) * decoder.head_dim
        linears = tokens * 2 * width**2 + context * width * keys + tokens * self.ffn * 3 * width * decoder.ffn
        count = self.count(decoder)
        return Flops(weights=2.0 * count * linears, mixing=4.0 * count * pairs * width)

    def cost(self, layer: int, micro: MicroBatch, decoder: Decoder, setting: Setting) -> Cost:
        """See `Injection`."""
        return cross_cost(self, micro, decoder, setting) if self.crosses(layer) else Cost()

    def owns(self, name: str) -> bool:
        """Everything in a layer's `cross`."""
        return ".cross." in name

    def check(self, parallel: Parallel, decoder: Decoder) -> None:
        """See `Injection`."""
        if not self.count(decoder):
            raise ConfigError(
                f"no layer of {decoder.layers} has cross-attention: the first would be {self.first or self.every - 1}",
                where="model.injection.every",
                fix=f"set model.injection.every={decoder.layers} or less, and first below it",
            )
        groups = self.groups(decoder)
        require_divisible(decoder.heads, "decoder.heads", groups, "injection.kv_heads")
        require_divisible(groups, "injection.kv_heads", parallel.tp, "parallel.tp")

    def layer_specs(self, specs: Mapping[int, ModuleSpec], decoder: Decoder) -> list[ModuleSpec]:
        """See `Injection`."""
        from .cross_layer import with_cross

        return [with_cross(spec, self, decoder) if self.crosses(number) else spec for number, spec in specs.items()]

    def build(self, ctx: BuildContext, tokens_per_tile: int) -> Injected:
        """See `Injection`."""
        from .model import Injected

        return Injected(tokens_per_tile, self.tag_mask)


class CrossAttention(Gated):
    """NVLM-X (4.3): only tags stand in the sequence."""

    name: Literal["cross_attention"] = "cross_attention"

    def placement(self, place: TilePlace) -> Placement:
        """See `Injection`. The thumbnail has a tag like the others (our guess)."""
        return Placement(self.tag(place), tag_inline=True, inline=False)
