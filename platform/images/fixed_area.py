"""The whole image in one tile of a fixed area, its shape kept: as EVEv2 is trained (published code)."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import PositiveInt

from ..errors import InputError
from .rules import Tiling
from .tiling import ImageTiles


class FixedArea(Tiling):
    """Both sides scaled alike until there are tile x tile pixels, smaller images growing, then rounded up to steps.

    EVEv2: 800 and 1600 with steps of 32. Pillow's antialiased bicubic.
    """

    name: Literal["fixed_area"] = "fixed_area"
    tile: PositiveInt = 800  # side of the square of that area
    side_step: PositiveInt = 32

    @property
    def step(self) -> int:
        """As Tiling's."""
        return self.side_step

    def plan(self, width: int, height: int) -> ImageTiles:
        """As Tiling's. In floats on purpose, as published: exact arithmetic would send some sizes to another grid."""
        if width < 1 or height < 1:
            raise InputError(f"an image of {width}x{height} has no pixels")
        scale = math.sqrt(width * height) / self.tile
        columns, rows = (max(math.ceil(side / scale / self.side_step), 1) for side in (width, height))
        return ImageTiles(1, columns, rows)

    def cut(self, image: np.ndarray) -> np.ndarray:
        """As Tiling's."""
        height, width = self.size(self.plan(image.shape[1], image.shape[0]))
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))[None]
