"""Inline injection (NVLM-D, LLaVA): visual tokens stand in the decoder's sequence, each tile after its text tag."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from .base import Injection
from .tags import Placement

if TYPE_CHECKING:
    from megavlm.platform.images import TilePlace


class Inline(Injection):
    """Every tile's tokens stand in the sequence after its tag (NVLM 4.2)."""

    name: Literal["inline"] = "inline"

    def placement(self, place: TilePlace) -> Placement:
        """See `Injection`."""
        return Placement(self.tag(place), tag_inline=True, inline=True)
