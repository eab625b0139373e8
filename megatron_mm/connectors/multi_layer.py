"""Several layers of one expert, joined in the plain ways that MMFuser is compared with, then an MLP. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import PositiveInt

from megavlm.platform.errors import ConfigError

from ..flops import Flops
from ..maps import MapShape
from .mlp import MLPConnector

if TYPE_CHECKING:
    from ..contracts import BuildContext
    from .multi_layer_model import MultiLayerModel


Count = Callable[[Sequence[int], int], int]  # of the maps' channels and the pyramid's


class Mode(NamedTuple):
    """The arithmetic of one way to join maps."""

    channels: Count  # that go into the MLP
    parameters: Count  # before it
    products: Count  # of a weight and an activation, for each cell
    of_one_width: bool = False  # whether all maps have to have the same channels


def _none(channels: Sequence[int], pyramid: int) -> int:
    return 0


def _first(channels: Sequence[int], pyramid: int) -> int:
    return channels[0]


MODES: Mapping[str, Mode] = {
    "concat": Mode(lambda channels, _: sum(channels), _none, _none),
    "average": Mode(_first, _none, _none, of_one_width=True),
    "weighted": Mode(_first, lambda channels, _: len(channels), _none, of_one_width=True),
    "fpn": Mode(
        lambda channels, pyramid: len(channels) * pyramid,
        lambda channels, pyramid: sum((each + 1 + 9 * pyramid + 1) * pyramid for each in channels),
        lambda channels, pyramid: sum((each + 9 * pyramid) * pyramid for each in channels),
    ),
}


class MultiLayer(MLPConnector):
    """The baselines of MMFuser's comparison (arXiv 2410.11829), and of arXiv 2503.06063's external direct fusion.

    concat: the layers' channels one after another. average: their mean. weighted: a learned convex combination. fpn:
    the feature pyramid of arXiv 1612.03144 (section 3) from the last map, which should be the deepest, to the first:
    each is brought to `fpn_channels`, the sum of the deeper ones is added, and a 3 x 3 convolution follows; what comes
    out is concatenated. Neither paper says more of the four than their names.
    """

    name: Literal["multi_layer"] = "multi_layer"
    mode: Literal["concat", "average", "weighted", "fpn"] = "concat"
    grid: PositiveInt | None = None  # cells to a side; null: the maps' own grid
    fpn_channels: PositiveInt = 256  # our guess: as the feature pyramid's paper, since the comparison gives none

    def tokens_per_tile(self, maps: Sequence[MapShape]) -> int:
        """The cells of one map."""
        rows, columns = self.common_grid(maps)
        return rows * columns

    def common_grid(self, maps: Sequence[MapShape]) -> tuple[int, int]:
        """Rows and columns of the tokens; raises ConfigError naming the map that does not fit the first one."""
        _require_layers_of_one_expert(maps)
        if self.grid is not None:
            return self.grid, self.grid
        first = maps[0]
        odd = next((each for each in maps if each.grid != first.grid), None)
        if odd is not None:
            raise ConfigError(
                f"layer {odd.layer} of {odd.expert} has {odd.rows} x {odd.columns} cells, "
                f"layer {first.layer} has {first.rows} x {first.columns}",
                where="model.connector.grid",
                fix=f"set it to what all are resized to, such as {first.rows}",
            )
        return first.grid

    def fused(self, maps: Sequence[MapShape]) -> int:
        """Channels that go into the MLP; raises ConfigError where a mean is wanted of maps of unequal widths."""
        _require_layers_of_one_expert(maps)
        first = maps[0]
        odd = next((each for each in maps if each.channels != first.channels), None)
        if odd is not None and MODES[self.mode].of_one_width:
            raise ConfigError(
                f"{self.mode}: layer {odd.layer} of {odd.expert} has {odd.channels} channels, "
                f"layer {first.layer} has {first.channels}",
                where="model.connector.mode",
                fix="choose concat or fpn, or layers of one width",
            )
        return self._count(MODES[self.mode].channels, maps)

    def _count(self, count: Count, maps: Sequence[MapShape]) -> int:
        return count([each.channels for each in maps], self.fpn_channels)

    def parameters(self, maps: Sequence[MapShape], width: int) -> int:
        """Parameters between the maps and `width` of the decoder."""
        return sum(self.parts(maps, width).values())

    def parts(self, maps: Sequence[MapShape], width: int) -> Mapping[str, int]:
        """The MLP, and what is learnt before it."""
        projector = {"projector": self.mlp_parameters(self.fused(maps), width)}
        learnt = self._count(MODES[self.mode].parameters, maps)
        return {"fuser": learnt, **projector} if learnt else projector

    def flops(self, maps: Sequence[MapShape], width: int) -> Flops:
        """Forward FLOPs of one tile, without the resizing."""
        tokens = self.tokens_per_tile(maps)
        mlp = self.mlp_flops(tokens, self.fused(maps), width)
        return Flops(mlp.weights + 2.0 * tokens * self._count(MODES[self.mode].products, maps))

    def build(self, ctx: BuildContext, maps: Sequence[MapShape], width: int) -> MultiLayerModel:
        """The connector, weights not drawn."""
        from .multi_layer_model import MultiLayerModel

        self.check(ctx.parallel)
        return MultiLayerModel(self, ctx, maps, width)


def _require_layers_of_one_expert(maps: Sequence[MapShape]) -> None:
    if len(maps) < 2:
        raise ConfigError(
            f"multi_layer joins several layers of one expert, and the encoder gives {len(maps)}",
            where="model.connector.name",
            fix="name several in model.encoder.layer, such as [3, 8, 13, 18, 23], or choose connector mlp",
        )
    other = next((each for each in maps if each.expert != maps[0].expert), None)
    if other is not None:
        raise ConfigError(
            f"multi_layer joins layers of one expert, and {other.expert} layer {other.layer} is not {maps[0].expert}'s",
            where="model.connector.name",
            fix="choose channel_concat, sequence_append or windows, or take one expert",
        )
