"""Deformable attention from one expert's map to the others', then an MLP. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from megavlm.platform.errors import ConfigError

from ..costs import Cost, Setting
from ..layout import require_divisible
from ..maps import MapShape
from ..tower_costs import Forward
from .base import on_grid, taken
from .fuser_attention import Deformable
from .mlp import MLPConnector

if TYPE_CHECKING:
    from ..contracts import BuildContext
    from .deformable_model import DeformableConnectorModel


class DeformableConnector(MLPConnector):
    """Each cell of the first map, at grid x grid, reads points of all others around its own place: x + read, then MLP.

    Eagle (arXiv 2408.15998, section 2.4): Mini-Gemini with deformable attention in place of that inside windows. Of its
    shape nothing is published but 1201 M parameters with both encoders, 24 M more than with this one. Here the norms
    and projections of queries and values are Mini-Gemini's (mgm_arch.py), the attention is Deformable DETR's, and each
    of the other maps, on whatever grid, is a level.
    """

    name: Literal["deformable"] = "deformable"
    grid: PositiveInt = 32  # cells to a side of the first map, each a query and a token
    heads: PositiveInt = 16  # our guess: unpublished; MMFuser's at the same 1024 channels
    points: PositiveInt = 4  # our guess: unpublished; Deformable DETR's

    def tokens_per_tile(self, maps: Sequence[MapShape]) -> int:
        """The grid's cells, however many maps there are."""
        return self.grid**2

    def attention(self, maps: Sequence[MapShape]) -> Deformable:
        """The attention between the maps; raises ConfigError where there is no other than the first."""
        first, *others = maps
        if not others:
            raise ConfigError(
                f"deformable reads other maps than the first, and the encoder gives one: {first.expert}",
                where="model.connector.name",
                fix="use two or more experts, or the connector mlp",
            )
        require_divisible(first.channels, f"channels of {first.expert}'s map", self.heads, "connector.heads")
        return Deformable(
            first.channels, self.heads, self.points, (self.grid, self.grid), tuple(each.grid for each in others)
        )

    def parts(self, maps: Sequence[MapShape], width: int) -> Mapping[str, int]:
        """What mixes the maps, and the MLP."""
        projector = self.mlp_parameters(maps[0].channels, width)
        return {"fuser": self.parameters(maps, width) - projector, "projector": projector}

    def cost(self, maps: Sequence[MapShape], width: int, setting: Setting) -> Cost:
        """See Connector."""
        f, channels = Forward(setting), maps[0].channels
        first, *others = taken(f, maps)
        first = on_grid(f, first, maps[0], self.grid, self.grid)
        cells = [f.product(f.norm(each), channels) for each in others]
        joined = f.make(sum(each.rows for each in cells), channels, *cells)
        read = self.attention(maps).passed(f, f.product(f.norm(first), channels), joined)
        f.until_here(*cells, joined)
        self.projected(f, f.add(first, read), width, setting)
        return f.cost()

    def build(self, ctx: BuildContext, maps: Sequence[MapShape], width: int) -> DeformableConnectorModel:
        """The connector, weights not drawn."""
        from .deformable_model import DeformableConnectorModel

        self.check(ctx.parallel)
        return DeformableConnectorModel(self, ctx, maps, width)
