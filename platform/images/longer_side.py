"""The whole image in one tile whose longer side is fixed, its shape kept: as EVE is trained (published code)."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt, model_validator

from ..errors import ConfigError
from .one_tile import MOST_STEPS, OneTile


class LongerSide(OneTile):
    """The longer side becomes `tile` pixels, smaller images growing; the shorter one is rounded up to whole steps.

    EVE: 672 with steps of 28, HD 1344 with steps of 56.
    """

    name: Literal["longer_side"] = "longer_side"
    tile: PositiveInt = 672
    side_step: PositiveInt = 28

    @model_validator(mode="after")
    def _divides(self) -> LongerSide:
        fits = self.tile // self.side_step * self.side_step or self.side_step
        if self.tile != fits:
            raise ConfigError(
                f"tiling.tile {self.tile} does not divide by tiling.side_step {self.side_step}",
                where="model.tiling.side_step",
                fix=f"set model.tiling.tile={fits}",
            )
        if self.tile // self.side_step > MOST_STEPS:
            raise ConfigError(
                f"a side of {self.tile // self.side_step} steps, and at most {MOST_STEPS} are counted",
                where="model.tiling.side_step",
                fix=f"set model.tiling.side_step={-(-self.tile // MOST_STEPS)} or more",
            )
        return self

    def steps(self, width: int, height: int) -> tuple[int, int]:
        """As OneTile's, in whole numbers: the published code's floats come to the same."""
        most = self.tile // self.side_step
        shorter = -(-most * min(width, height) // max(width, height))  # ceil(tile * short / long / step)
        return (most, shorter) if width >= height else (shorter, most)
