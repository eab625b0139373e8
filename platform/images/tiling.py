"""Dynamic high resolution: which grid of tiles an image is cut into (NVLM, arXiv 2409.11402, section 4.2).

The rule is InternVL 1.5's (`find_closest_aspect_ratio` and `dynamic_preprocess` of its published training code),
restated. Aspect ratios are compared as float64 on purpose: published checkpoints were trained with that rounding, and
exact fractions would send real sizes (1000x1200 among them) to another grid.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import ConfigError, InputError

Grid = tuple[int, int]
Size = tuple[int, int]  # height, width


class ImageTiles(NamedTuple):
    """How one image was cut: `tiles` in all, a grid of columns x rows and, if that is one less, a thumbnail.

    Where tiles differ in size there is one, and columns and rows are its sides in steps (`Tiling.step`).
    """

    tiles: int
    columns: int
    rows: int


class TilePlace(NamedTuple):
    """One tile's place in its image: its number, and its column and row in a grid of columns x rows, all from 0.

    A thumbnail shows the whole image, which is its place; an image of one tile is its own thumbnail.
    """

    number: int
    column: int
    row: int
    columns: int
    rows: int
    thumbnail: bool


def places(image: ImageTiles, thumbnail: bool) -> list[TilePlace]:
    """Where each tile of an image stands, in their order. `thumbnail`: whether the tiling makes thumbnails."""
    columns, rows = image.columns, image.rows
    if image.tiles == 1:
        return [TilePlace(0, 0, 0, 1, 1, thumbnail)]
    grid = [TilePlace(k, k % columns, k // columns, columns, rows, thumbnail=False) for k in range(columns * rows)]
    return grid + [TilePlace(k, 0, 0, columns, rows, thumbnail=True) for k in range(len(grid), image.tiles)]


def candidate_grids(min_tiles: int, max_tiles: int) -> list[Grid]:
    """All (cols, rows) with min_tiles <= cols * rows <= max_tiles, by number of tiles, then columns.

    (1, 6) gives the paper's 14 ratios. Raises ConfigError when the bounds allow no grid.
    """
    return list(_grids(min_tiles, max_tiles))


@functools.lru_cache(64)
def _grids(min_tiles: int, max_tiles: int) -> tuple[Grid, ...]:
    if not 1 <= min_tiles <= max_tiles:
        raise ConfigError(f"min_tiles {min_tiles} and max_tiles {max_tiles} allow no grid", fix="1 <= min <= max")
    sides = range(1, max_tiles + 1)
    grids = [(cols, rows) for cols in sides for rows in sides if min_tiles <= cols * rows <= max_tiles]
    return tuple(sorted(grids, key=lambda grid: (grid[0] * grid[1], grid[0])))


def choose_grid(width: int, height: int, tile: int, min_tiles: int, max_tiles: int) -> Grid:
    """The (cols, rows) for a width x height image cut into square tiles of `tile` pixels.

    The grid whose cols/rows is nearest to width/height. Of equally near ones the larger wins as long as the image has
    more than half of that grid's pixels. Raises InputError for an image without pixels, ConfigError for bad bounds.
    """
    if width < 1 or height < 1:
        raise InputError(f"an image of {width}x{height} has no pixels")
    aspect = width / height
    best, best_difference = (1, 1), float("inf")
    for cols, rows in _grids(min_tiles, max_tiles):
        difference = abs(aspect - cols / rows)
        tie_won = difference == best_difference and 2 * width * height > tile * tile * cols * rows
        if difference < best_difference or tie_won:
            best, best_difference = (cols, rows), difference
    return best


def tile_count(cols: int, rows: int, thumbnail: bool) -> int:
    """Tiles of a grid, with the thumbnail of the whole image; a 1x1 grid is its own thumbnail."""
    tiles = cols * rows
    return tiles + 1 if thumbnail and tiles != 1 else tiles


def image_tiles(width: int, height: int, tile: int, min_tiles: int, max_tiles: int, thumbnail: bool) -> ImageTiles:
    """How a width x height image is cut; the other arguments, and what is raised, as for `tile_image`."""
    columns, rows = choose_grid(width, height, tile, min_tiles, max_tiles)
    return ImageTiles(tile_count(columns, rows, thumbnail), columns, rows)


def tile_image(image: np.ndarray, tile: int, min_tiles: int, max_tiles: int, thumbnail: bool) -> np.ndarray:
    """uint8 RGB [H, W, 3] -> uint8 [n, tile, tile, 3]: the grid row by row, then the thumbnail (if any).

    The image is stretched to the grid (its aspect ratio is not kept) with Pillow's antialiased bicubic, as published.
    """
    height, width = image.shape[:2]
    cols, rows = choose_grid(width, height, tile, min_tiles, max_tiles)
    picture = Image.fromarray(image)
    small = _resize(picture, tile, tile) if tile_count(cols, rows, thumbnail) > cols * rows else None
    return cut_grid(_resize(picture, tile * cols, tile * rows), tile, small)


def cut_grid(grid: np.ndarray, tile: int, thumbnail: np.ndarray | None) -> np.ndarray:
    """uint8 [rows * tile, cols * tile, 3] -> uint8 [n, tile, tile, 3], row by row, `thumbnail` (if any) behind."""
    rows, cols = grid.shape[0] // tile, grid.shape[1] // tile
    out = np.empty((rows * cols + (thumbnail is not None), tile, tile, 3), dtype=np.uint8)
    tiles = grid.reshape(rows, tile, cols, tile, 3).transpose(0, 2, 1, 3, 4)
    out[: rows * cols].reshape(rows, cols, tile, tile, 3)[:] = tiles
    if thumbnail is not None:
        out[-1] = thumbnail
    return out


def _resize(picture: Image.Image, width: int, height: int) -> np.ndarray:
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
