"""LLaVA's and Eagle's projector, and what all connectors have in common that end in it. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt, model_validator

from megavlm.platform.errors import ConfigError

from ..flops import Flops
from ..layout import require_divisible
from ..maps import MapShape, the_only
from .base import Connector

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


def mlp_flops(tokens: int, channels: int, width: int, hidden: int | None = None, layers: int = 2) -> Flops:
    """Forward FLOPs of `tokens` tokens."""
    widths = pairwise(mlp_widths(channels, width, hidden, layers))
    return Flops(weights=2.0 * tokens * sum(before * after for before, after in widths))


class MLPConnector(Connector):
    """A connector that ends in Linear -> exact GELU -> Linear, with biases (LLaVA-1.5's builder.py: mlp2x_gelu).

    A subclass says `tokens_per_tile`, `parameters`, `flops`, `build`, and `parts` where it has some.
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

    def mlp_flops(self, tokens: int, channels: int, width: int) -> Flops:
        """Forward FLOPs of one MLP of this shape."""
        return mlp_flops(tokens, channels, width, self.hidden, self.layers)


class MLP(MLPConnector):
    """One feature map, each of its cells a token (LLaVA-1.5)."""

    name: Literal["mlp"] = "mlp"

    def tokens_per_tile(self, maps: Sequence[MapShape]) -> int:
        """As many as the map has cells; raises ConfigError when there are several maps."""
        only = the_only(maps, self.name)
        return only.rows * only.columns

    def parameters(self, maps: Sequence[MapShape], width: int) -> int:
        """Parameters between the map and `width` of the decoder."""
        return self.mlp_parameters(the_only(maps, self.name).channels, width)

    def flops(self, maps: Sequence[MapShape], width: int) -> Flops:
        """Forward FLOPs of one tile."""
        return self.mlp_flops(self.tokens_per_tile(maps), the_only(maps, self.name).channels, width)

    def build(self, ctx: BuildContext, maps: Sequence[MapShape], width: int) -> MLPModel:
        """The connector, weights not drawn."""
        from .mlp_model import MLPModel

        self.check(ctx.parallel)
        return MLPModel(self, ctx, the_only(maps, self.name).channels, width)
