"""Eagle's fusion: every map on one grid, joined channel by channel, then an MLP. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from ..costs import Cost, Setting
from ..maps import MapShape
from ..tower_costs import Forward
from .base import on_grid, taken
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

    def cost(self, maps: Sequence[MapShape], width: int, setting: Setting) -> Cost:
        """See Connector."""
        f = Forward(setting)
        each = [on_grid(f, x, m, self.grid, self.grid) for x, m in zip(taken(f, maps), maps, strict=True)]
        self.projected(f, f.make(self.grid**2, joined(maps), *each), width, setting)
        return f.cost()

    def build(self, ctx: BuildContext, maps: Sequence[MapShape], width: int) -> ChannelConcatModel:
        """The connector, weights not drawn."""
        from .channel_concat_model import ChannelConcatModel

        self.check(ctx.parallel)
        return ChannelConcatModel(self, ctx, maps, width)


def joined(maps: Sequence[MapShape]) -> int:
    """Channels of all maps together."""
    return sum(each.channels for each in maps)
