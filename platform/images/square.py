"""One square per image, its shape kept: LLaVA's `image_aspect_ratio`, as Eagle and MMFuser are trained."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from ..errors import InputError
from .rules import Tiling
from .tiling import ImageTiles


class Colour(NamedTuple):
    """RGB, 0..255 each."""

    red: int = 122
    green: int = 116
    blue: int = 104


class Square(Tiling):
    """The image in one tile, by Pillow's antialiased bicubic.

    pad: on a square of its longer side, in the middle, then resized (LLaVA's expand2square; SFT and evaluation).
    crop: its shorter side resized to the tile's, then the middle of it (CLIP's own preprocessing; pretraining).
    """

    name: Literal["square"] = "square"
    fit: Literal["pad", "crop"] = "pad"
    background: Colour = Colour()  # of what is padded; CLIP's mean, cut to whole numbers, as published

    def plan(self, width: int, height: int) -> ImageTiles:
        """As Tiling's."""
        if width < 1 or height < 1:
            raise InputError(f"an image of {width}x{height} has no pixels")
        return ImageTiles(1, 1, 1)

    def cut(self, image: np.ndarray) -> np.ndarray:
        """As Tiling's."""
        self.plan(image.shape[1], image.shape[0])
        picture = Image.fromarray(image)
        shown = self._padded(picture) if self.fit == "pad" else self._cropped(picture)
        return np.asarray(shown)[None]

    def _padded(self, picture: Image.Image) -> Image.Image:
        side = max(picture.size)
        square = Image.new("RGB", (side, side), tuple(self.background))
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        return square.resize((self.tile, self.tile), Image.Resampling.BICUBIC)

    def _cropped(self, picture: Image.Image) -> Image.Image:
        short = min(picture.size)
        size = (self.tile * picture.width // short, self.tile * picture.height // short)
        left, top = ((side - self.tile) // 2 for side in size)
        resized = picture.resize(size, Image.Resampling.BICUBIC)
        return resized.crop((left, top, left + self.tile, top + self.tile))
