"""LLaVA's and Eagle's projector, and what all connectors have in common that end in it. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt, model_validator

from megavlm.platform.errors import ConfigError

from ..costs import Cost, Setting
from ..layout import require_divisible
from ..maps import MapShape, the_only
from ..tower_costs import Forward, Values
from .base import Connector, taken

if TYPE_CHECKING:
    from ..config import Parallel
    from ..contracts import BuildContext
    from .mlp_model import MLPModel


def mlp_widths(channels: int, width: int, hidden: int | None = None, layers: int = 2) -> list[int]:
    """What goes into each of the linears, and at last what comes out; `hidden` None is `width`, as in LLaVA."""
    return [channels, *[hidden or width] * (layers - 1), width]


def mlp_parameters(channels: int, width: int, hidden: int | None = None, layers: int = 2) -> int:
    """Parameters of the `layers` linears with their biases."""
    return sum((before + 1) * after for before, after in pairwise(mlp_widths(channels, width, hidden, layers)))


def projected(f: Forward, x: Values, widths: Sequence[int], tp: int) -> Values:
    """x through mlp_model.py's Projector; of linears that follow each other, every other is split over its inputs."""
    linears = len(widths) - 1
    if linears % 2 and tp > 1:
        x = f.make(x.rows, widths[0] // tp, x)
    first = held = x
    for index, after in enumerate(widths[1:]):
        over_inputs = (linears - index) % 2 == 1
        out = f.product(f.activation(x) if index else x, after if over_inputs else after // tp, bias=False)
        f.until_here(held, x)
        f.weigh(int(out.width))
        held, x = out, f.add(f.exchange(out) if over_inputs else out)
    f.until_here(first, held)
    return x


class MLPConnector(Connector):
    """A connector that ends in Linear -> exact GELU -> Linear, with biases (LLaVA-1.5's builder.py: mlp2x_gelu).

    A subclass says `tokens_per_tile`, `cost`, `build`, and `parts` where it has some.
    """

    name: str
    hidden: PositiveInt | None = None  # between the layers; null: the decoder's width, as LLaVA and Eagle
    layers: PositiveInt = 2  # 1: a Linear alone

    @model_validator(mode="after")
    def _hidden_between_layers(self) -> MLPConnector:
        if self.layers == 1 and self.hidden is not None:
            raise ConfigError(
                f"hidden {self.hidden} between layers, and there is 1",
                where="connector.hidden",
                fix="leave it out, or set connector.layers: 2",
            )
        return self

    def parts(self, maps: Sequence[MapShape], width: int) -> Mapping[str, int]:
        """What a stage can train apart from the rest: none."""
        return {}

    def check(self, parallel: Parallel) -> None:
        """Raise ConfigError where this connector cannot be split over `parallel`."""
        if self.hidden is not None:  # null is the decoder's width, which has to divide anyway
            require_divisible(self.hidden, "connector.hidden", parallel.tp, "parallel.tp")

    def mlp_parameters(self, channels: int, width: int) -> int:
        """Parameters of one MLP of this shape."""
        return mlp_parameters(channels, width, self.hidden, self.layers)

    def projected(self, f: Forward, x: Values, width: int, setting: Setting) -> Values:
        """x through one MLP of this shape."""
        return projected(f, x, mlp_widths(int(x.width), width, self.hidden, self.layers), setting.tp)


class MLP(MLPConnector):
    """One feature map, each of its cells a token (LLaVA-1.5)."""

    name: Literal["mlp"] = "mlp"

    def tokens_per_tile(self, maps: Sequence[MapShape]) -> int:
        """As many as the map has cells; raises ConfigError when there are several maps."""
        only = the_only(maps, self.name)
        return only.rows * only.columns

    def cost(self, maps: Sequence[MapShape], width: int, setting: Setting) -> Cost:
        """See Connector."""
        f = Forward(setting)
        (cells,) = taken(f, [the_only(maps, self.name)])
        self.projected(f, cells, width, setting)
        return f.cost()

    def build(self, ctx: BuildContext, maps: Sequence[MapShape], width: int) -> MLPModel:
        """The connector, weights not drawn."""
        from .mlp_model import MLPModel

        self.check(ctx.parallel)
        return MLPModel(self, ctx, the_only(maps, self.name).channels, width)
