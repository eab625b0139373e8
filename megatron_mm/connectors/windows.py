"""Mini-Gemini's fusion: each cell of one map looks at its own place in the others, then an MLP. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from megavlm.platform.errors import ConfigError

from ..costs import Cost, Setting
from ..maps import MapShape
from ..tower_blocks import softmax
from ..tower_costs import Forward, Values
from .base import on_grid, taken
from .mlp import MLPConnector

if TYPE_CHECKING:
    from ..contracts import BuildContext
    from .windows_model import WindowsModel


class Windows(MLPConnector):
    """The first map at grid x grid asks; a cell sees the window of every other map that covers its place.

    q = Linear(LayerNorm(first)), k and v = Linear(LayerNorm(other)), x = first + softmax(q k / sqrt(dim)) v, then MLP:
    Mini-Gemini's patch info mining (arXiv 2403.18814, section 3.2; mgm_arch.py), in Eagle's comparison of fusions
    (arXiv 2408.15998, section 2.4). With one other map, of the grid's own size, a window is one cell: softmax gives it
    1 whatever q and k are, and these don't learn.
    """

    name: Literal["windows"] = "windows"
    grid: PositiveInt = 32  # cells to a side, each a query and a token
    dim: PositiveInt = 1024  # of queries and keys. Our guess: Mini-Gemini's with CLIP-L; Eagle's are unpublished

    def tokens_per_tile(self, maps: Sequence[MapShape]) -> int:
        """The grid's cells, however many maps there are."""
        return self.grid**2

    def sides(self, each: MapShape) -> tuple[int, int]:
        """Rows and columns of a window in this map; one whose grid is no multiple is resized to the next."""
        return -(-each.rows // self.grid), -(-each.columns // self.grid)

    def parts(self, maps: Sequence[MapShape], width: int) -> Mapping[str, int]:
        """The attention and the MLP."""
        projector = self.mlp_parameters(maps[0].channels, width)
        return {"fuser": self.parameters(maps, width) - projector, "projector": projector}

    def cost(self, maps: Sequence[MapShape], width: int, setting: Setting) -> Cost:
        """See Connector."""
        f = Forward(setting)
        asking, others = asking_and_asked(maps)
        first, *asked = taken(f, [asking, *others])
        first = on_grid(f, first, asking, self.grid, self.grid)
        cells = [self._windows(f, x, each) for x, each in zip(asked, others, strict=True)]
        self.projected(f, self._attended(f, first, cells), width, setting)
        return f.cost()

    def _windows(self, f: Forward, x: Values, each: MapShape) -> Values:
        down, across = self.sides(each)
        resized = on_grid(f, x, each, self.grid * down, self.grid * across)
        return f.copy(resized) if across > 1 else resized

    def _attended(self, f: Forward, asking: Values, cells: Sequence[Values]) -> Values:
        channels, seen = int(asking.width), sum(x.rows for x in cells)
        queries = f.product(f.norm(asking), self.dim)
        keys = f.make(seen, self.dim, *(f.product(f.norm(x), self.dim) for x in cells))
        values = f.make(seen, channels, *(f.product(f.norm(x), channels) for x in cells))
        scores = f.make(asking.rows, seen / asking.rows, queries, keys, keeps=(queries, keys))
        shares = softmax(f, f.copy(scores))
        f.mixes(2 * seen * (self.dim + channels))
        return f.add(asking, f.make(asking.rows, channels, shares, values, keeps=(shares, values)))

    def build(self, ctx: BuildContext, maps: Sequence[MapShape], width: int) -> WindowsModel:
        """The connector, weights not drawn."""
        from .windows_model import WindowsModel

        self.check(ctx.parallel)
        return WindowsModel(self, ctx, maps, width)


def asking_and_asked(maps: Sequence[MapShape]) -> tuple[MapShape, Sequence[MapShape]]:
    """The map of the queries, and the others; raises ConfigError where there are no others."""
    if len(maps) < 2:
        names = ", ".join(f"{each.expert} layer {each.layer}" for each in maps)
        raise ConfigError(
            f"windows looks from one feature map at others, and the encoder gives {names} alone",
            where="model.connector.name",
            fix="name more experts in model.encoder, or choose connector mlp or channel_concat",
        )
    return maps[0], maps[1:]
