"""Grids, order of tiles and tags against a statement of the published rule of their own, over whole arrays of sizes."""

from __future__ import annotations

import numpy as np
import pytest

from megavlm.megatron_mm.injection.inline import Inline
from megavlm.megatron_mm.injection.tags import tag
from megavlm.platform.images import ImageTiles, image_tiles, places, tile_image

KINDS = ("none", "1d", "2d_grid", "2d_box")
GRIDS = [(i, j) for i in range(1, 13) for j in range(1, 13) if i * j <= 12]


def sizes(count: int) -> np.ndarray:
    """Photographs, round numbers, and multiples of half a tile, where equally near grids are: int64 [count, 2]."""
    rng = np.random.default_rng(6)
    photographs = (800 * np.exp(0.7 * rng.standard_normal((count, 2)))).astype(np.int64) + 1
    exact = np.stack([50 * rng.integers(1, 60, (count, 2)), 224 * rng.integers(1, 20, (count, 2)), photographs])
    return exact[rng.integers(0, 3, count), np.arange(count)]


def grids(size: np.ndarray, most: int, tile: int) -> np.ndarray:
    """The rule at once for all sizes: the nearest ratio in float64; of several the largest with fewer than twice the
    image's pixels, else the smallest. int64 [n, 2]."""
    all_grids = np.array([grid for grid in GRIDS if grid[0] * grid[1] <= most])
    area = all_grids.prod(axis=1)
    away = np.abs((size[:, 0] / size[:, 1])[:, None] - all_grids[:, 0] / all_grids[:, 1])
    nearest = away == away.min(axis=1, keepdims=True)
    passes = nearest & (2 * size.prod(axis=1)[:, None] > tile * tile * area)
    largest = np.where(passes, area, -1).argmax(axis=1)
    smallest = np.where(nearest, area, 10**6).argmin(axis=1)
    return all_grids[np.where(passes.any(axis=1), largest, smallest)]


def named(kind: str, columns: int, rows: int, two_digits: bool) -> list[str]:
    """The tags of an image, from the paper's examples: tiles row by row, the thumbnail last, which one tile is too."""
    whole = "<box> (0, 0), (1000, 1000) </box>" if kind == "2d_box" else "<tile_global_thumbnail>"
    if two_digits and kind != "2d_box":
        whole = "<tile_global_thumbnail0>"
    tags, number = [], 0
    for y in range(rows) if columns * rows > 1 else ():
        for x in range(columns):
            number += 1
            plain = f"<tile_{number:02d}>" if two_digits else f"<tile_{number}>"
            corners = [1000 * x // columns, 1000 * y // rows, 1000 * (x + 1) // columns, 1000 * (y + 1) // rows]
            box = "<box> ({}, {}), ({}, {}) </box>".format(*corners)
            tags.append({"1d": plain, "2d_grid": f"<tile_x{x}_y{y}>", "2d_box": box}[kind])
    return [*tags, whole]


def test_ten_thousand_sizes_at_every_number_of_tiles() -> None:
    size, tile = sizes(10_000), 448
    for most in range(1, 13):
        expected = grids(size, most, tile).tolist()
        found = [image_tiles(w, h, tile, 1, most, True) for w, h in size.tolist()]
        assert [[image.columns, image.rows] for image in found] == expected
        assert [image.tiles for image in found] == [i * j + (i * j > 1) for i, j in expected]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("digits", [1, 2])
def test_tags_of_every_grid(kind: str, digits: int) -> None:
    for columns, rows in GRIDS:
        image = ImageTiles(columns * rows + (columns * rows > 1), columns, rows)
        told = [tag(kind, place, digits) for place in places(image, thumbnail=True)]
        assert told == ([""] * image.tiles if kind == "none" else named(kind, columns, rows, digits == 2))
        bare = [tag(kind, place, digits) for place in places(image._replace(tiles=columns * rows), thumbnail=False)]
        assert len(bare) == columns * rows and (columns * rows == 1 or bare == told[:-1])
        assert [Inline(tags=kind, tag_digits=digits).placement(place) for place in places(image, True)] == [
            (text, True, True) for text in told
        ]


def test_without_thumbnails_one_tile_is_a_tile() -> None:
    [alone] = places(ImageTiles(1, 1, 1), thumbnail=False)
    assert [tag(kind, alone) for kind in KINDS[1:3]] == ["<tile_1>", "<tile_x0_y0>"]


def test_a_place_is_where_the_tile_was_cut() -> None:
    """Every block of the picture has a colour of its own."""
    for columns, rows in GRIDS:
        colours = np.random.default_rng(1).integers(0, 256, (rows, columns, 3), np.uint8)
        picture = colours.repeat(28, axis=0).repeat(28, axis=1)
        image = image_tiles(28 * columns, 28 * rows, 28, columns * rows, columns * rows, True)
        tiles = tile_image(picture, 28, columns * rows, columns * rows, thumbnail=True)
        assert (image.columns, image.rows, len(tiles)) == (columns, rows, image.tiles)
        for place in [place for place in places(image, True) if not place.thumbnail]:
            assert (tiles[place.number][14, 14] == colours[place.row, place.column]).all()
