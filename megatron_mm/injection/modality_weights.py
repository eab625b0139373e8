"""Weights of each modality's own in every layer of the decoder (EVEv2, arXiv 2502.06788, "divide-and-conquer").

Visual tokens stand in the sequence as inline; where one stands, norms, attention projections and MLP are second ones.
Attention is over all tokens; embeddings, the final norm and the output layer are shared. EVEv2's code computes both
branches for every token and takes one of the two results; here a token is computed once, in its own branch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ..costs import Cost, MicroBatch, Setting
from .base import Injection
from .tags import Placement, Tags

if TYPE_CHECKING:
    from collections.abc import Mapping

    from megatron.core.transformer.spec_utils import ModuleSpec

    from megavlm.platform.images import TilePlace

    from ..decoders.base import Decoder

SECOND = ".visual."  # in the names of the second weights, which are otherwise those of the first


class ModalityWeights(Injection):
    """Every tile's tokens stand in the sequence, without tags as EVE has it, and have weights of their own."""

    name: Literal["modality_weights"] = "modality_weights"
    tags: Tags = "none"

    def placement(self, place: TilePlace) -> Placement:
        """See `Injection`."""
        return Placement(self.tag(place), tag_inline=True, inline=True)

    def parameters(self, decoder: Decoder) -> int:
        """As many as the decoder's layers have."""
        shared = decoder.hidden + decoder.vocab * decoder.hidden * (1 if decoder.tied else 2)
        return decoder.parameters() - shared

    def cost(self, layer: int, micro: MicroBatch, decoder: Decoder, setting: Setting) -> Cost:
        """See `Injection`: of the visual rows, with weights as many as the layer has."""
        _, own, _ = decoder.costs(micro, setting)
        return own.times(1.0 - self.left(micro))

    def left(self, micro: MicroBatch) -> float:
        """See `Injection`."""
        return 1.0 - micro.visual / micro.positions

    def owns(self, name: str) -> bool:
        """The second weights."""
        return SECOND in name

    def copied_from(self, name: str) -> str | None:
        """The first weight in the same place (EVEv2's repeat_moe.py)."""
        return name.replace(SECOND, ".") if self.owns(name) else None

    def layer_specs(self, specs: Mapping[int, ModuleSpec], decoder: Decoder) -> list[ModuleSpec]:
        """See `Injection`."""
        from .routed import with_second_weights

        return [with_second_weights(spec) for spec in specs.values()]
