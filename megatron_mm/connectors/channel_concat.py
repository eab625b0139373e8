"""Eagle's fusion: every map on one grid, joined channel by channel, then an MLP. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from ..flops import Flops
from ..maps import MapShape
from .mlp import MLPConnector

if TYPE_CHECKING:
    from ..contracts import BuildContext
    from .channel_concat_model import ChannelConcatModel


class ChannelConcat(MLPConnector):
    """Maps resized to grid x grid, their channels one after another in the maps' order, and an MLP.

    Eagle (arXiv 2408.15998, section 2.4; NVEagle's checkpoints).
    """

    name: Literal["channel_concat"] = "channel_concat"
    grid: PositiveInt = 32  # cells to a side, each a token

    def tokens_per_tile(self, maps: Sequence[MapShape]) -> int:
        """The grid's cells, however many maps there are."""
        return self.grid**2

    def parameters(self, maps: Sequence[MapShape], width: int) -> int:
        """Parameters between the maps and `width` of the decoder."""
        return self.mlp_parameters(joined(maps), width)

    def flops(self, maps: Sequence[MapShape], width: int) -> Flops:
        """Forward FLOPs of one tile, without the resizing."""
        return self.mlp_flops(self.tokens_per_tile(maps), joined(maps), width)

    def build(self, ctx: BuildContext, maps: Sequence[MapShape], width: int) -> ChannelConcatModel:
        """The connector, weights not drawn."""
        from .channel_concat_model import ChannelConcatModel

        self.check(ctx.parallel)
        return ChannelConcatModel(self, ctx, maps, width)


def joined(maps: Sequence[MapShape]) -> int:
    """Channels of all maps together."""
    return sum(each.channels for each in maps)
