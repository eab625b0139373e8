"""Several layers of one expert, joined in the plain ways that MMFuser is compared with, then an MLP. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import PositiveInt

from megavlm.platform.errors import ConfigError

from ..costs import Cost, Setting
from ..maps import MapShape
from ..tower_costs import Forward, Values
from .base import on_grid, taken
from .mlp import MLPConnector

if TYPE_CHECKING:
    from ..contracts import BuildContext
    from .multi_layer_model import MultiLayerModel


Count = Callable[[Sequence[int], int], int]  # of the maps' channels and the pyramid's
Joined = Callable[[Forward, Sequence[Values], int], Values]  # the maps, and the pyramid's channels


class Mode(NamedTuple):
    """The arithmetic of one way to join maps."""

    joined: Joined
    channels: Count  # that go into the MLP
    of_one_width: bool = False  # whether all maps have to have the same channels


def _first(channels: Sequence[int], pyramid: int) -> int:
    return channels[0]


def _stacked(f: Forward, maps: Sequence[Values]) -> Values:
    return f.make(len(maps) * maps[0].rows, maps[0].width, *maps)


def _concat(f: Forward, maps: Sequence[Values], pyramid: int) -> Values:
    return f.make(maps[0].rows, sum(x.width for x in maps), *maps)


def _average(f: Forward, maps: Sequence[Values], pyramid: int) -> Values:
    return f.make(maps[0].rows, maps[0].width, _stacked(f, maps))


def _weighted(f: Forward, maps: Sequence[Values], pyramid: int) -> Values:
    f.weigh(len(maps))
    stacked = _stacked(f, maps)
    return f.make(maps[0].rows, maps[0].width, stacked, learns=(stacked,))


def _fpn(f: Forward, maps: Sequence[Values], pyramid: int) -> Values:
    merged, levels = None, []
    for x in maps[::-1]:
        level = f.product(x, pyramid)
        merged = level if merged is None else f.add(merged, level)
        f.weigh((9 * pyramid + 1) * pyramid)
        levels.append(f.convolution(merged, x.rows, pyramid, 9 * pyramid))
    return _concat(f, levels, pyramid)


MODES: Mapping[str, Mode] = {
    "concat": Mode(_concat, lambda channels, _: sum(channels)),
    "average": Mode(_average, _first, of_one_width=True),
    "weighted": Mode(_weighted, _first, of_one_width=True),
    "fpn": Mode(_fpn, lambda channels, pyramid: len(channels) * pyramid),
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
        self._require_widths(maps)
        return MODES[self.mode].channels([each.channels for each in maps], self.fpn_channels)

    def _require_widths(self, maps: Sequence[MapShape]) -> None:
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

    def parts(self, maps: Sequence[MapShape], width: int) -> Mapping[str, int]:
        """The MLP, and what is learnt before it."""
        projector = {"projector": self.mlp_parameters(self.fused(maps), width)}
        learnt = self.parameters(maps, width) - projector["projector"]
        return {"fuser": learnt, **projector} if learnt else projector

    def cost(self, maps: Sequence[MapShape], width: int, setting: Setting) -> Cost:
        """See Connector; raises ConfigError as `fused`."""
        self._require_widths(maps)
        f, (rows, columns) = Forward(setting), self.common_grid(maps)
        each = [on_grid(f, x, shape, rows, columns) for x, shape in zip(taken(f, maps), maps, strict=True)]
        self.projected(f, MODES[self.mode].joined(f, each, self.fpn_channels), width, setting)
        return f.cost()

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
