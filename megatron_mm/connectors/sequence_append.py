"""Sequence append: an MLP for each map, the tokens of a tile's maps one after another. Loads no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from megavlm.platform.errors import ConfigError

from ..costs import Cost, Setting
from ..maps import MapShape
from ..tower_costs import Forward
from .base import on_grid, taken
from .mlp import MLPConnector

if TYPE_CHECKING:
    from ..contracts import BuildContext
    from .sequence_append_model import SequenceAppendModel


class SequenceAppend(MLPConnector):
    """Maps resized to grid x grid, an MLP for each; a tile's tokens are those of its first map, then of its second ...

    Eagle (arXiv 2408.15998, section 2.4). Its authors released no code of it; their number of parameters says that each
    map has an MLP of two layers of its own.
    """

    name: Literal["sequence_append"] = "sequence_append"
    grid: PositiveInt = 32  # cells to a side of each map, each a token

    def tokens_per_tile(self, maps: Sequence[MapShape]) -> int:
        """The grid's cells, once for each map."""
        return len(maps) * self.grid**2

    def parts(self, maps: Sequence[MapShape], width: int) -> Mapping[str, int]:
        """Each map's MLP by `map_names`: what a stage can train apart from the rest."""
        sizes = (self.mlp_parameters(each.channels, width) for each in maps)
        return dict(zip(map_names(maps), sizes, strict=True))

    def cost(self, maps: Sequence[MapShape], width: int, setting: Setting) -> Cost:
        """See Connector."""
        f = Forward(setting)
        each = [on_grid(f, x, m, self.grid, self.grid) for x, m in zip(taken(f, maps), maps, strict=True)]
        f.make(self.tokens_per_tile(maps), width, *(self.projected(f, x, width, setting) for x in each))
        return f.cost()

    def build(self, ctx: BuildContext, maps: Sequence[MapShape], width: int) -> SequenceAppendModel:
        """The connector, weights not drawn."""
        from .sequence_append_model import SequenceAppendModel

        self.check(ctx.parallel)
        return SequenceAppendModel(self, ctx, maps, width)


def map_names(maps: Sequence[MapShape]) -> list[str]:
    """Each map's expert, with its layer where the expert gives several; raises ConfigError where a name comes twice."""
    times = Counter(each.expert for each in maps)
    names = [each.expert if times[each.expert] == 1 else f"{each.expert}_{each.layer}" for each in maps]
    for name, count in Counter(names).items():
        if count > 1:
            raise ConfigError(
                f"sequence_append names its MLPs after the maps, and {count} are called {name}",
                where="model.encoder",
                fix="let every map be of another expert or of another layer",
            )
    return names
