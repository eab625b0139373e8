"""Hybrid injection (NVLM-H): the thumbnail is read in the sequence, the regular tiles through cross-attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from .cross_attention import Gated
from .tags import Placement

if TYPE_CHECKING:
    from megavlm.platform.images import TilePlace


class Hybrid(Gated):
    """The tags' text embeddings stand in the context, each before its tile's tokens (NVLM 4.4)."""

    name: Literal["hybrid"] = "hybrid"
    thumbnail_tag: bool = True  # the thumbnail's tag before it in the sequence. Our guess: as in NVLM-D

    def placement(self, place: TilePlace) -> Placement:
        """See `Injection`."""
        if place.thumbnail:
            return Placement(self.tag(place) if self.thumbnail_tag else "", tag_inline=True, inline=True)
        return Placement(self.tag(place), tag_inline=False, inline=False)
