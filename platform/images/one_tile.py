"""The whole image in one tile of a size of its own, stretched to whole steps: what EVE's two tilings share."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from PIL import Image
from pydantic import PositiveInt

from ..errors import InputError
from .decode import BadImage
from .rules import Tiling
from .tiling import ImageTiles

MOST_STEPS = np.iinfo(np.int16).max  # along a side: what a manifest's columns hold


class OneTile(Tiling):
    """One tile per image, of whole steps along both sides. Pillow's antialiased bicubic."""

    side_step: PositiveInt  # pixels

    @property
    def step(self) -> int:
        """As Tiling's."""
        return self.side_step

    @abstractmethod
    def steps(self, width: int, height: int) -> tuple[int, int]:
        """Columns and rows of steps, at least one of each, for an image of width x height pixels."""

    def plan(self, width: int, height: int) -> ImageTiles:
        """As Tiling's; BadImage ("too_thin") for an image of more steps than a manifest can hold."""
        if width < 1 or height < 1:
            raise InputError(f"an image of {width}x{height} has no pixels")
        columns, rows = self.steps(width, height)
        if max(columns, rows) > MOST_STEPS:
            raise BadImage("too_thin", f"{width}x{height} pixels would be more than {MOST_STEPS} steps long")
        return ImageTiles(1, columns, rows)

    def cut(self, image: np.ndarray) -> np.ndarray:
        """As Tiling's."""
        height, width = self.size(self.plan(image.shape[1], image.shape[0]))
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))[None]
