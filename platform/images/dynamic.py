"""Dynamic high resolution (NVLM 3.2, InternVL 1.5): a grid of tiles that is nearest to the image's shape."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import PositiveInt

from .rules import Tiling
from .tiling import Grid, ImageTiles, choose_grid, image_tiles, tile_image


class Dynamic(Tiling):
    """1..max_tiles tiles that the image is stretched onto, and a thumbnail."""

    name: Literal["dynamic"] = "dynamic"
    tile: PositiveInt = 448
    min_tiles: PositiveInt = 1
    max_tiles: PositiveInt = 6  # without the thumbnail
    thumbnail: bool = True

    @property
    def most_tiles(self) -> int:
        """As Tiling's."""
        return self.max_tiles

    @property
    def makes_thumbnails(self) -> bool:
        """As Tiling's."""
        return self.thumbnail

    def grid(self, width: int, height: int) -> Grid:
        """Columns and rows of the grid; raises as `choose_grid`."""
        return choose_grid(width, height, self.tile, self.min_tiles, self.max_tiles)

    def plan(self, width: int, height: int) -> ImageTiles:
        """As Tiling's; raises ConfigError too, for bounds that allow no grid."""
        return image_tiles(width, height, self.tile, self.min_tiles, self.max_tiles, self.thumbnail)

    def cut(self, image: np.ndarray) -> np.ndarray:
        """As Tiling's."""
        return tile_image(image, self.tile, self.min_tiles, self.max_tiles, self.thumbnail)
