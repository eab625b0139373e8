"""Inline injection (NVLM-D, LLaVA): visual tokens stand in the decoder's sequence, each tile after its text tag."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from megavlm.platform.config import Config

from .tags import THUMBNAIL, Placement, Tags, tag

if TYPE_CHECKING:
    from collections.abc import Mapping

    from megatron.core.transformer.spec_utils import ModuleSpec

    from megavlm.platform.images import TilePlace

    from ..config import Parallel
    from ..contracts import BuildContext
    from ..decoders.base import Decoder
    from .inline_model import InlineInjection


class Inline(Config):
    """Where a tile's tokens go, and how the text says which tile it is (NVLM 4.2)."""

    name: Literal["inline"] = "inline"
    tags: Tags = "1d"

    everywhere: ClassVar[bool] = False  # whether every pipeline stage wants visual tokens, or the first alone

    def parameters(self, decoder: Decoder) -> int:
        """None: tags are ordinary text."""
        return 0

    def owns(self, name: str) -> bool:
        """Whether a parameter inside the decoder, by its name there, is the injection's: here none is."""
        return False

    def layer_specs(self, specs: Mapping[int, ModuleSpec], decoder: Decoder) -> list[ModuleSpec]:
        """The decoder's layers as they are."""
        return list(specs.values())

    def placement(self, place: TilePlace) -> Placement:
        """Every tile's tokens stand in the sequence after its tag."""
        return Placement(tag(self.tags, place), tag_inline=True, inline=True)

    def tile_prefix(self, tile_index: int, tile_count: int) -> str:
        """The text before the tokens of tile `tile_index` (from 0) of an image that has `tile_count`.

        The last tile is the thumbnail; an image of one tile is its own thumbnail, as in NVLM's published code.
        """
        if self.tags == "none":
            return ""
        return THUMBNAIL if tile_index == tile_count - 1 else f"<tile_{tile_index + 1}>"

    def check(self, parallel: Parallel) -> None:
        """Nothing to split."""

    def build(self, ctx: BuildContext) -> InlineInjection:
        """The module that merges."""
        from .inline_model import InlineInjection

        return InlineInjection()
