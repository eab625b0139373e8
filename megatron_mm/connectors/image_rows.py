"""EVE's tokens of an image: a class token, then its rows, each with a token at its end. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import PositiveInt, model_validator

from megavlm.platform.errors import ConfigError

from ..flops import Flops
from ..layout import require_divisible
from ..maps import MapShape, the_only
from .base import Connector
from .mlp import mlp_flops, mlp_parameters

if TYPE_CHECKING:
    from ..config import Parallel
    from ..contracts import BuildContext
    from .image_rows_model import ImageRowsModel


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

    def parameters(self, maps: Sequence[MapShape], width: int) -> int:
        """Parameters between the map and `width` of the decoder."""
        channels = self.channels(maps, width)
        attention = self.class_attention * (4 * channels**2 + 5 * channels)
        mlp = mlp_parameters(channels, width, self.hidden) if self.layers else 0
        return 2 * channels + attention + mlp

    def flops(self, maps: Sequence[MapShape], width: int) -> Flops:
        """Forward FLOPs of one tile; not what is done once for all: the class token's query, a row's end.

        No key and no value of a cell is made (query_attention.py).
        """
        channels, only = self.channels(maps, width), the_only(maps, self.name)
        cells = only.rows * only.columns
        mlp = mlp_flops(cells + 1, channels, width, self.hidden).weights if self.layers else 0.0
        attention = self.class_attention * 4.0 * channels**2
        return Flops(weights=mlp + attention, mixing=self.class_attention * 4.0 * cells * self.heads * channels)

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
