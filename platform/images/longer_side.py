"""The whole image in one tile whose longer side is fixed, its shape kept: as EVE is trained (published code)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image
from pydantic import PositiveInt, model_validator

from ..errors import ConfigError, InputError
from .rules import Tiling
from .tiling import ImageTiles


class LongerSide(Tiling):
    """The longer side becomes `tile` pixels, smaller images growing; the shorter one is rounded up to whole steps.

    EVE: 672 with steps of 28, HD 1344 with steps of 56. Pillow's antialiased bicubic.
    """

    name: Literal["longer_side"] = "longer_side"
    tile: PositiveInt = 672
    side_step: PositiveInt = 28

    @model_validator(mode="after")
    def _divides(self) -> LongerSide:
        if self.tile % self.side_step:
            raise ConfigError(
                f"tiling.tile {self.tile} does not divide by tiling.side_step {self.side_step}",
                where="model.tiling.side_step",
                fix=f"set model.tiling.tile={self.tile // self.side_step * self.side_step or self.side_step}",
            )
        return self

    @property
    def step(self) -> int:
        """As Tiling's."""
        return self.side_step

    def plan(self, width: int, height: int) -> ImageTiles:
        """As Tiling's."""
        if width < 1 or height < 1:
            raise InputError(f"an image of {width}x{height} has no pixels")
        most = self.tile // self.side_step
        # ceil(tile * short / long / step), in whole numbers
        shorter = -(-most * min(width, height) // max(width, height))
        return ImageTiles(1, most, shorter) if width >= height else ImageTiles(1, shorter, most)

    def cut(self, image: np.ndarray) -> np.ndarray:
        """As Tiling's."""
        height, width = self.size(self.plan(image.shape[1], image.shape[0]))
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))[None]
