"""LLaVA-HR's mixture of resolutions (Luo et al. 2024, arXiv 2403.03003): a convolutional map written into a ViT."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt, ValidationInfo, field_validator, model_validator

from megavlm.platform.config import point
from megavlm.platform.errors import ConfigError

from ..costs import Cost, Setting
from ..flops import Flops
from ..maps import MapShape
from ..tower_costs import Forward, Values, total
from . import ENCODERS
from .base import Encoder
from .mixture import encoder_at, standing_at
from .replicated import Replicated

if TYPE_CHECKING:
    from ..config import Parallel
    from ..contracts import BuildContext
    from .llava_hr_model import LlavaHrModel

LOW = {"name": "clip", "image_size": 448, "trained_size": 336, "layer": -1, "class_token": "dropped"}


class LlavaHr(Encoder):
    """A ViT at low resolution (`low`) into which the last map of a second encoder (`high`) is written.

    As published (multipath_encoder_wapper.py): after each layer in `after` an adapter adds the high map, projected by a
    first convolution to `high_hidden` and by a second one to the ViT's width, times the tanh of a gate, and a
    depthwise convolution of the ViT's own map; behind the last layer both are projected and added. The second
    convolutions start from zero, so that in the beginning the ViT runs as trained. Where the weights of `low` and
    `high` are frozen the published code leaves the adapters out: `after: []`.

    One thing differs: the published code resizes CLIP's table of positions with antialiasing, whose cubic is another
    than that of `trained_size`.
    """

    name: Literal["llava_hr"] = "llava_hr"
    image_size: PositiveInt = 1024  # side of a square tile, in pixels
    low: point(ENCODERS) = Field(default=LOW)  # type: ignore[valid-type]  # clip or siglip. 448 px: image_size / 32 * 14
    high: point(ENCODERS) = Field(default="convnext")  # type: ignore[valid-type]
    after: tuple[PositiveInt, ...] = (6, 12, 18)  # layers of `low`: a quarter of its 24 each
    high_hidden: PositiveInt | None = None  # between the high map's two convolutions; null: its channels
    kernel: PositiveInt = 7  # side of the depthwise convolution
    gate_hidden: PositiveInt | None = None  # between the gate's two layers; null: half of the ViT's width

    @field_validator("low", "high", mode="before")
    @classmethod
    def _in_its_place(cls, value: Any, info: ValidationInfo) -> Any:
        return encoder_at(str(info.field_name), value)

    @model_validator(mode="after")
    def _fits(self) -> LlavaHr:
        if not isinstance(self.low, Replicated) or len(self.low.maps) != 1:
            raise ConfigError(
                f"'{self.low.name}' is not a plain ViT with one feature map, between whose layers an adapter can stand",
                where="encoder.low",
                fix="choose clip or siglip, with one `layer`",
            )
        if any(a >= b for a, b in pairwise(self.after)) or max(self.after, default=0) > self.low.depth:
            raise ConfigError(
                f"after {list(self.after)}: encoder.low has layers 1 to {self.low.depth}",
                where="encoder.after",
                fix="name some of them, in ascending order",
            )
        if self.kernel % 2 == 0:
            raise ConfigError(f"kernel {self.kernel} has no centre", where="encoder.kernel", fix="choose an odd one")
        _require_matching(self.high.maps[-1], self.low.maps[0])
        return self

    @property
    def maps(self) -> tuple[MapShape, ...]:
        """One map, with the ViT's grid and width."""
        return (self.low.maps[0]._replace(expert=self.name),)

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Of the ViT, of the high map, between its two convolutions, and between the gate's layers."""
        low, high = self.low.maps[0].channels, self.high.maps[-1].channels
        return low, high, self.high_hidden or high, self.gate_hidden or low // 2

    @property
    def parts(self) -> Mapping[str, int]:
        """What a stage can train apart: low, high and adapter, with their parameters."""
        adapter = total(self._adapter(Setting())).weights
        return {"low": self.low.parameters(), "high": self.high.parameters(), "adapter": adapter}

    def costs(self, setting: Setting) -> tuple[Cost, ...]:
        """Of one tile: high, low and the adapter, as `Cost.part` says. Resizing is not counted."""
        both = [
            dataclasses.replace(cost, part=f"encoder.{part}")
            for part, encoder in (("high", self.high), ("low", self.low))
            for cost in encoder.costs(setting)
        ]
        return (*both, *self._adapter(setting))

    def _adapter(self, setting: Setting) -> tuple[Cost, ...]:
        """The alignments and what stands behind the last layer; the first of them keeps the high map."""
        alignments = [self._aligned(Forward(setting), known=i > 0) for i in range(len(self.after))]
        return (*alignments, self._merged(Forward(setting), known=bool(self.after)))

    def _inputs(self, f: Forward, known: bool) -> tuple[Values, Values]:
        low, high = self.low.maps[0], self.high.maps[-1]
        cells = f.given(high.rows * high.columns, high.channels, known=known)
        return f.given(low.rows * low.columns, low.channels), cells

    def _at_grid(self, f: Forward, high: Values) -> Values:
        shape = self.low.maps[0]
        rows = shape.rows * shape.columns
        return high if high.rows == rows else f.make(rows, high.width, high)

    def _aligned(self, f: Forward, known: bool) -> Cost:
        low, high = self._inputs(f, known)
        width, _, hidden, gate = self.widths
        slow = self._at_grid(f, f.product(f.activation(f.product(high, hidden)), width))
        f.weigh((self.kernel**2 + 1) * width)
        around = f.convolution(low, low.rows, width, self.kernel**2)
        x = f.add(low, f.product(f.activation(around), width))
        mean = f.make(1, 2 * width, f.make(low.rows, 2 * width, x, slow))
        share = f.product(f.activation(f.product(mean, gate)), 1)
        f.add(x, f.make(low.rows, width, slow, share, keeps=(slow,)))
        return f.cost("encoder.adapter", again=True)

    def _merged(self, f: Forward, known: bool) -> Cost:
        low, high = self._inputs(f, known)
        width = self.widths[0]
        f.add(f.product(low, width), f.product(self._at_grid(f, high), width))
        return f.cost("encoder.adapter", again=True)

    def parameters(self) -> int:
        """Parameters of both encoders and the adapter."""
        return sum(self.parts.values())

    def flops(self) -> Flops:
        """Forward FLOPs of one tile, resizing not counted."""
        adapter = Flops(weights=total(self._adapter(Setting())).products)
        return self.low.flops() + self.high.flops() + adapter

    def check(self, parallel: Parallel) -> None:
        """Raise ConfigError where one of the encoders cannot be split over `parallel`."""
        for place, encoder in (("low", self.low), ("high", self.high)):
            with standing_at(place):
                encoder.check(parallel)

    def fp8_widths(self, parallel: Parallel) -> list[tuple[str, int, int]]:
        """The linear layers that run in FP8: the encoders'."""
        return [
            (f"{place}.{width}", size, split)
            for place, encoder in (("low", self.low), ("high", self.high))
            for width, size, split in encoder.fp8_widths(parallel)
        ]

    def build(self, ctx: BuildContext) -> LlavaHrModel:
        """Both encoders and the adapter, weights not drawn."""
        from .llava_hr_model import LlavaHrModel

        return LlavaHrModel(self, ctx)


def _require_matching(high: MapShape, low: MapShape) -> None:
    """A smaller map is interpolated, a larger one pooled: its sides have to be multiples."""
    larger = high.rows > low.rows or high.columns > low.columns
    if larger and (high.rows % low.rows or high.columns % low.columns):
        raise ConfigError(
            f"the high map's {high.rows} x {high.columns} cells are no multiple of the low one's "
            f"{low.rows} x {low.columns}, to which they would be pooled",
            where="encoder.high.image_size",
            fix="choose image sizes of `high` and `low` whose grids are equal or divide",
        )
