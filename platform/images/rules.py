"""From an image to square tiles: the rules by name. A new one is one file here and one line in this table."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from pydantic import PositiveInt

from ..config import Config
from ..registry import Registry
from .tiling import ImageTiles

TILINGS = Registry(
    "tiling",
    {
        "dynamic": "megavlm.platform.images.dynamic:Dynamic",
        "square": "megavlm.platform.images.square:Square",
    },
)


class Tiling(Config):
    """How an image is cut. Packing asks for `plan` alone, which knows no pixels."""

    name: str
    tile: PositiveInt  # side of a square tile, in pixels; the encoder's input size

    @property
    def most_tiles(self) -> int:
        """Tiles of an image at most, without the thumbnail."""
        return 1

    @property
    def makes_thumbnails(self) -> bool:
        """Whether an image of several tiles is shown once more as a whole, by its last tile."""
        return False

    @abstractmethod
    def plan(self, width: int, height: int) -> ImageTiles:
        """How an image of width x height pixels is cut; raises InputError for one without pixels."""

    @abstractmethod
    def cut(self, image: np.ndarray) -> np.ndarray:
        """uint8 RGB [H, W, 3] -> uint8 [n, tile, tile, 3], as `plan` says; raises as `plan` does."""
