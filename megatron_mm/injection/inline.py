"""Inline injection (NVLM-D, LLaVA): visual tokens stand in the decoder's sequence, each tile after its text tag."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from megavlm.platform.config import Config

if TYPE_CHECKING:
    from ..config import Parallel
    from ..contracts import BuildContext
    from .inline_model import InlineInjection

THUMBNAIL = "<tile_global_thumbnail>"


class Inline(Config):
    """Where a tile's tokens go, and how the text says which tile it is (NVLM 4.2)."""

    name: Literal["inline"] = "inline"
    tags: Literal["none", "1d"] = "1d"

    def parameters(self, width: int) -> int:
        """None: tags are ordinary text."""
        return 0

    def tile_prefix(self, tile_index: int, tile_count: int) -> str:
        """The text before the tokens of tile `tile_index` (from 0) of an image that has `tile_count`.

        The last tile is the thumbnail; an image of one tile is its own thumbnail, as in NVLM's published code.
        """
        if self.tags == "none":
            return ""
        return THUMBNAIL if tile_index == tile_count - 1 else f"<tile_{tile_index + 1}>"

    def check(self, parallel: Parallel) -> None:
        """Nothing to split."""

    def build(self, ctx: BuildContext, width: int) -> InlineInjection:
        """The module that merges."""
        from .inline_model import InlineInjection

        return InlineInjection()
