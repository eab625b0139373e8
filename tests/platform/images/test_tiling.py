"""The tiling rule against the paper's list, published examples, and a restatement that tries every grid."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.images import candidate_grids, choose_grid, tile_count, tile_image

# NVLM, section 4.2 (dynamic high resolution with at most 6 tiles): columns:rows.
PUBLISHED = ["1:1", "1:2", "2:1", "3:1", "1:3", "4:1", "1:4", "2:2", "1:5", "5:1", "6:1", "2:3", "1:6", "3:2"]


def test_the_papers_14_ratios():
    grids = candidate_grids(1, 6)
    assert len(grids) == 14
    assert {f"{cols}:{rows}" for cols, rows in grids} == set(PUBLISHED)
    assert [cols * rows for cols, rows in grids] == sorted(cols * rows for cols, rows in grids)


def test_12_tiles_give_35_ratios():
    assert len(candidate_grids(1, 12)) == 35


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [
        (448, 448, (1, 1)),
        (633, 633, (1, 1)),
        (634, 634, (2, 2)),
        (2000, 2000, (2, 2)),
        (640, 480, (3, 2)),
        (800, 600, (3, 2)),
        (1920, 1080, (2, 1)),
        (1080, 1920, (1, 2)),
        (2550, 3300, (2, 3)),
        (3000, 1000, (3, 1)),
    ],
)
def test_published_examples(width, height, grid):
    assert choose_grid(width, height, 448, 1, 6) == grid


def by_brute_force(width: int, height: int, tile: int, low: int, high: int) -> set[tuple[int, int]]:
    """All grids the rule allows: nearest in float64, of those the largest to pass the area test, else the smallest."""
    every = [(i, j) for i in range(1, high + 1) for j in range(1, high + 1) if low <= i * j <= high]
    distance = {grid: abs(width / height - grid[0] / grid[1]) for grid in every}
    nearest = sorted((grid for grid in every if distance[grid] == min(distance.values())), key=lambda g: g[0] * g[1])
    passing = [g for g in nearest if Fraction(width * height) > Fraction(1, 2) * tile * tile * g[0] * g[1]]
    area = passing[-1][0] * passing[-1][1] if passing else nearest[0][0] * nearest[0][1]
    return {grid for grid in nearest if grid[0] * grid[1] == area}


SIZES = st.one_of(
    st.integers(1, 6000), st.integers(1, 40).map(lambda k: 50 * k), st.integers(1, 20).map(lambda k: 224 * k)
)


@settings(max_examples=400, deadline=None)
@given(SIZES, SIZES, st.sampled_from([64, 224, 336, 448]), st.integers(1, 3), st.integers(3, 12))
def test_against_brute_force(width, height, tile, low, high):
    allowed = by_brute_force(width, height, tile, low, high)
    found = choose_grid(width, height, tile, low, high)
    assert found in allowed
    assert len(allowed) == 1 or low > 1  # from one tile up, no two grids of equal area are ever equally near


def test_rounding_is_the_published_one():
    # 5/6 lies exactly between 2/3 and 1; in float64 it is nearer to 1, and checkpoints were trained that way.
    assert choose_grid(1000, 1200, 448, 1, 6) == (2, 2)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12))
def test_tile_count(cols, rows):
    assert tile_count(cols, rows, thumbnail=False) == cols * rows
    assert tile_count(cols, rows, thumbnail=True) == cols * rows + (cols * rows > 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from([8, 28, 56]), st.integers(1, 6), st.booleans())
def test_tiles_against_pillows_crops(width, height, tile, high, thumbnail):
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    cols, rows = choose_grid(width, height, tile, 1, high)
    image = Image.fromarray(pixels)
    stretched = image.resize((tile * cols, tile * rows), Image.Resampling.BICUBIC)
    corners = [(c * tile, r * tile) for r in range(rows) for c in range(cols)]
    expected = [stretched.crop((x, y, x + tile, y + tile)) for x, y in corners]
    if thumbnail and cols * rows > 1:
        expected.append(image.resize((tile, tile), Image.Resampling.BICUBIC))
    found = tile_image(pixels, tile, 1, high, thumbnail)
    assert found.dtype == np.uint8 and found.flags.c_contiguous
    assert np.array_equal(found, np.stack([np.asarray(part) for part in expected]))


def test_an_image_of_the_grids_size_is_only_cut():
    pixels = np.random.default_rng(7).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    tiles = tile_image(pixels, 28, 1, 6, thumbnail=True)
    assert tiles.shape == (7, 28, 28, 3)
    assert np.array_equal(tiles[4], pixels[28:56, 28:56])


@pytest.mark.parametrize("bounds", [(0, 6), (7, 6), (-1, 1)])
def test_impossible_bounds(bounds):
    with pytest.raises(ConfigError, match="allow no grid"):
        candidate_grids(*bounds)


def test_no_pixels():
    with pytest.raises(InputError, match="0x5"):
        choose_grid(0, 5, 448, 1, 6)
