"""From an image to tiles: the rules by name. A new one is one file here and one line in this table."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from pydantic import PositiveInt

from ..config import Config
from ..registry import Registry
from .tiling import ImageTiles, Size

TILINGS = Registry(
    "tiling",
    {
        "dynamic": "megavlm.platform.images.dynamic:Dynamic",
        "square": "megavlm.platform.images.square:Square",
        "longer_side": "megavlm.platform.images.longer_side:LongerSide",
        "fixed_area": "megavlm.platform.images.fixed_area:FixedArea",
    },
)


class Tiling(Config):
    """How an image is cut. Packing asks for `plan` alone, which knows no pixels."""

    name: str
    tile: PositiveInt  # side of a square tile, in pixels: the encoder's input size, or what stands for it (`step`)

    @property
    def most_tiles(self) -> int:
        """Tiles of an image at most, without the thumbnail."""
        return 1

    @property
    def step(self) -> int | None:
        """Where tiles differ in size: both sides of each are multiples of so many pixels. None: all are tile x tile."""
        return None

    @property
    def side(self) -> int | None:
        """Of every tile in pixels; None where tiles differ in size."""
        return self.tile if self.step is None else None

    def size(self, image: ImageTiles) -> Size:
        """Height and width of each tile of an image that is cut like this, in pixels."""
        return (self.tile, self.tile) if self.step is None else (image.rows * self.step, image.columns * self.step)

    @property
    def makes_thumbnails(self) -> bool:
        """Whether an image of several tiles is shown once more as a whole, by its last tile."""
        return False

    @abstractmethod
    def plan(self, width: int, height: int) -> ImageTiles:
        """How an image of width x height pixels is cut; raises InputError for one without pixels."""

    @abstractmethod
    def cut(self, image: np.ndarray) -> np.ndarray:
        """uint8 RGB [H, W, 3] -> uint8 [n, height, width, 3] of one `size`, as `plan` says; raises as `plan` does."""
