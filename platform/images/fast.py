"""Plain JPEGs decoded no larger than needed and resized by OpenCV; every other file as `exact` does it.

Against Pillow alone: 3 to 8 times as many images per CPU-second, at 47 dB in the median (benchmarks/decode.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from PIL import ImageFile

from .decode import (
    MAX_PIXELS,
    decode_exact,
    decode_pillow,
    displayed_size,
    is_plain_jpeg,
    open_image,
    stored_pixels,
)
from .decoders import Decoded, ImageDecoder, attempt
from .dynamic import Dynamic
from .one_tile import OneTile
from .orientation import orientation, oriented
from .rules import Tiling
from .tiling import cut_grid, tile_count

# Decoding at half size must leave this many pixels per wanted one: nearer to 1 the decoder's own low-pass filter shows
# (37 dB on dense mosaics of photographs, against 41 dB).
MARGIN = 1.4
# How much plain cubic interpolation may shrink: it does not smooth, and above this it aliases.
SHRINK = 1.3

# Whoever decodes does so in many processes, one to a core; OpenCV's own threads would fight them, and survive no fork.
cv2.setNumThreads(1)


class FastDecoder(ImageDecoder):
    """One file after another, in this thread. The last bits may differ between makes of CPU, as OpenCV's do."""

    name: Literal["fast"] = "fast"

    def images(self, items: Sequence[bytes], max_pixels: int = MAX_PIXELS, min_side: int = 0) -> list[Decoded]:
        """As ImageDecoder.images; only a JPEG comes smaller than it is."""
        return [attempt(image_of, data, max_pixels, min_side) for data in items]

    def tiles(self, items: Sequence[bytes], rule: Tiling, max_pixels: int = MAX_PIXELS) -> list[Decoded]:
        """As ImageDecoder.tiles."""
        return [attempt(tiles_of, data, rule, max_pixels) for data in items]


def image_of(data: bytes, max_pixels: int, min_side: int) -> np.ndarray:
    """One file as uint8 RGB [H, W, 3]; raises BadImage."""
    if min_side < 1:
        return decode_exact(data, max_pixels)
    image = open_image(data, max_pixels)
    pixels = stored_pixels(data, image, reduction_to(min(image.size) / min_side)) if is_plain_jpeg(image) else None
    return decode_pillow(data, image) if pixels is None else oriented(pixels, orientation(image))


def tiles_of(data: bytes, rule: Tiling, max_pixels: int) -> np.ndarray:
    """One file as uint8 RGB [n, height, width, 3]; raises BadImage."""
    image = open_image(data, max_pixels)
    tiles = _tiles_of_jpeg(data, image, rule) if is_plain_jpeg(image) else None
    return rule.cut(decode_pillow(data, image)) if tiles is None else tiles


def _tiles_of_jpeg(data: bytes, image: ImageFile.ImageFile, rule: Tiling) -> np.ndarray | None:
    """None when Pillow should judge the file, and where the rule does more than stretch the image."""
    if isinstance(rule, OneTile):
        height, width = rule.size(rule.plan(*displayed_size(image)))
        stretched = _grid_of_jpeg(data, image, width, height)
        return None if stretched is None else stretched[None]
    return _grid_and_thumbnail(data, image, rule) if isinstance(rule, Dynamic) else None


def _grid_and_thumbnail(data: bytes, image: ImageFile.ImageFile, rule: Dynamic) -> np.ndarray | None:
    cols, rows = rule.grid(*displayed_size(image))
    grid = _grid_of_jpeg(data, image, cols * rule.tile, rows * rule.tile)
    if grid is None:
        return None
    # From the grid, whose sides are whole multiples of the tile's: several times cheaper than from the image.
    small = cv2.resize(grid, (rule.tile, rule.tile), interpolation=cv2.INTER_AREA)
    return cut_grid(grid, rule.tile, small if tile_count(cols, rows, rule.thumbnail) > cols * rows else None)


def _grid_of_jpeg(data: bytes, image: ImageFile.ImageFile, width: int, height: int) -> np.ndarray | None:
    """uint8 [height, width, 3] as displayed; it is turned last, when it is smallest."""
    turn = orientation(image)
    wide, high = (height, width) if turn >= 5 else (width, height)
    reduction = reduction_to(min(image.width / wide, image.height / high) / MARGIN)
    pixels = stored_pixels(data, image, reduction)
    if pixels is None:
        return None
    return oriented(stretch(pixels, wide, high, image.width / reduction, image.height / reduction), turn)


def reduction_to(room: float) -> int:
    """The largest of 1, 2, 4, 8 that is at most `room`: those are the sizes that libjpeg-turbo has SIMD code for."""
    return max(step for step in (1, 2, 4, 8) if step <= max(room, 1))


def stretch(pixels: np.ndarray, width: int, height: int, across: float, down: float) -> np.ndarray:
    """The first `across` x `down` pixels of uint8 [H, W, 3] -> uint8 [height, width, 3], near Pillow's bicubic.

    `across` and `down` may end inside the last pixel, as the picture does when its sides don't divide by the reduction:
    half a pixel too much would cost ten dB at the far edge.

    OpenCV's cubic filter is quick but does not antialias; its area filter is quick for whole factors only. So an image
    that shrinks is first brought to the next whole multiple of the wanted size by the one, then averaged by the other.
    """
    wide, high = width * _samples(across, width), height * _samples(down, height)
    out = cv2.resize(pixels, None, fx=wide / across, fy=high / down, interpolation=cv2.INTER_CUBIC)[:high, :wide]
    return out if (wide, high) == (width, height) else cv2.resize(out, (width, height), interpolation=cv2.INTER_AREA)


def _samples(source: float, target: int) -> int:
    """How many values are averaged into one along an axis."""
    return 1 if source <= SHRINK * target else math.ceil(source / target)
