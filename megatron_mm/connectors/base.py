"""What every connector says of the feature maps that it takes. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from megavlm.platform.config import Config

from ..costs import Cost, Setting
from ..flops import Flops
from ..maps import MapShape
from ..tower_costs import Forward, Values

if TYPE_CHECKING:
    import numpy as np


class Connector(Config):
    """Base of the connectors, which take the maps of tiles of one size unless they say otherwise."""

    any_size: ClassVar[bool] = False  # tiles may differ in size and in shape

    name: str

    def cost(self, maps: Sequence[MapShape], width: int, setting: Setting) -> Cost:
        """Of one tile, between the maps and `width` of the decoder."""
        raise NotImplementedError

    def parameters(self, maps: Sequence[MapShape], width: int) -> int:
        """Parameters between the maps and `width` of the decoder."""
        return self.cost(maps, width, Setting()).weights

    def flops(self, maps: Sequence[MapShape], width: int) -> Flops:
        """Forward FLOPs of one tile, without the resizing."""
        cost = self.cost(maps, width, Setting())
        return Flops(weights=cost.products, mixing=cost.mixing)

    def cell_places(self, rows: int, columns: int) -> np.ndarray | None:
        """int64 [rows, columns]: where each cell of a tile's map stands among the tile's tokens; None where they are
        no longer apart."""
        return None


def taken(f: Forward, maps: Sequence[MapShape]) -> list[Values]:
    """The maps of a tile: what goes in."""
    return [f.given(each.rows * each.columns, each.channels) for each in maps]


def on_grid(f: Forward, x: Values, each: MapShape, rows: int, columns: int) -> Values:
    """common_grid.py's: an axis after the other, in float32."""
    if each.grid == (rows, columns):
        return x
    halfway = f.make(rows * each.columns, x.width, f.copy(x, size=4), size=4)
    return f.copy(f.make(rows * columns, x.width, halfway, size=4), size=f.size)
