"""EVE's tokens of an image: a class token, then its rows, each with a token at its end. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import PositiveInt, model_validator

from megavlm.platform.errors import ConfigError

from ..costs import Cost, Setting
from ..layout import require_divisible
from ..maps import MapShape, the_only
from ..tower_blocks import softmax
from ..tower_costs import Forward, Values
from .base import Connector, taken
from .mlp import mlp_widths, projected

if TYPE_CHECKING:
    from ..config import Parallel
    from ..contracts import BuildContext
    from .image_rows_model import ImageRowsModel


BLOCK = 32  # cells that segments.py sums up first; a tile is padded to the next multiple


class ImageRows(Connector):
    """[class, row 0, end, row 1, end, ...] of each tile, whatever its size; the order is all that tells positions.

    EVE (arXiv 2406.11832, section 3.1; published code): the class token attends to all cells of its tile, and all
    tokens go through Linear -> exact GELU -> Linear. EVEv2 (arXiv 2502.06788): class_attention=false, layers=0.
    """

    any_size: ClassVar[bool] = True

    name: Literal["image_rows"] = "image_rows"
    class_attention: bool = True  # false: a learnt class token as it is, alike for all tiles
    heads: PositiveInt = 8  # of that attention
    layers: Literal[0, 2] = 2  # 0: no MLP; the encoder's channels are the decoder's width
    hidden: PositiveInt | None = None  # between the layers; null: the decoder's width

    @model_validator(mode="after")
    def _hidden_between_layers(self) -> ImageRows:
        if not self.layers and self.hidden is not None:
            raise ConfigError(
                f"hidden {self.hidden} between layers, and there are none",
                where="connector.hidden",
                fix="leave it out, or set connector.layers: 2",
            )
        return self

    def tokens_per_tile(self, maps: Sequence[MapShape]) -> int:
        """The cells, one more for each row, and the class token; raises ConfigError when there are several maps."""
        only = the_only(maps, self.name)
        return only.rows * (only.columns + 1) + 1

    def cell_places(self, rows: int, columns: int) -> np.ndarray:
        """See Connector."""
        return 1 + np.arange(rows)[:, None] * (columns + 1) + np.arange(columns)

    def parts(self, maps: Sequence[MapShape], width: int) -> Mapping[str, int]:
        """What a stage can train apart from the rest: none."""
        return {}

    def check(self, parallel: Parallel) -> None:
        """Raise ConfigError where the MLP cannot be split over `parallel`."""
        if self.hidden is not None:  # null is the decoder's width, which has to divide anyway
            require_divisible(self.hidden, "connector.hidden", parallel.tp, "parallel.tp")

    def cost(self, maps: Sequence[MapShape], width: int, setting: Setting) -> Cost:
        """See Connector. Not counted is what is done once for all: the class token's query, a row's end."""
        f, channels = Forward(setting), self.channels(maps, width)
        f.weigh(2 * channels)
        (cells,) = taken(f, maps)
        x = f.make(cells.rows + 1, channels, cells, *([self._asked(f, cells)] if self.class_attention else []))
        if self.layers:
            x = projected(f, x, mlp_widths(channels, width, self.hidden), setting.tp)
        parts = f.make(self.tokens_per_tile(maps), width, x)
        f.make(parts.rows, width, parts, keeps=(parts,))
        f.until_here(x)
        return f.cost()

    def _asked(self, f: Forward, cells: Values) -> Values:
        """The class token's attention to the cells of a tile (query_attention.py, segments.py)."""
        channels = int(cells.width)
        f.weigh(3 * channels**2 + 2 * channels)  # of the query, keys and values; what follows counts the others
        normed = f.norm(cells)
        padded = f.make(cells.rows, channels, normed, keeps=(normed,))
        scores = f.make(padded.rows, self.heads, padded, keeps=(padded,))
        shares = softmax(f, scores)
        f.mixes(4 * cells.rows * self.heads * channels)
        blocks = f.make(cells.rows / BLOCK, self.heads * channels, shares, padded, keeps=(shares, padded), size=4)
        seen = f.make(1, self.heads * channels, blocks, keeps=(blocks,))
        return f.product(f.convolution(seen, 1, channels, channels), channels)

    def build(self, ctx: BuildContext, maps: Sequence[MapShape], width: int) -> ImageRowsModel:
        """The connector, weights not drawn."""
        from .image_rows_model import ImageRowsModel

        self.check(ctx.parallel)
        return ImageRowsModel(self, ctx, self.channels(maps, width), width)

    def channels(self, maps: Sequence[MapShape], width: int) -> int:
        """Of the map; raises ConfigError where they fit neither the heads nor, without an MLP, the decoder."""
        channels = the_only(maps, self.name).channels
        if self.class_attention:
            require_divisible(channels, "channels of the encoder", self.heads, "connector.heads")
        if not self.layers and channels != width:
            raise ConfigError(
                f"the encoder's {channels} channels are not the decoder's {width}, and connector.layers 0 is no MLP",
                where="model.connector.layers",
                fix=f"set model.encoder.channels={width}, or model.connector.layers=2",
            )
        return channels
