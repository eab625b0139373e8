"""The reference: Pillow's pixels (libjpeg-turbo gives the same for plain JPEGs) and Pillow's antialiased bicubic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from .decode import MAX_PIXELS, decode_exact
from .decoders import Decoded, ImageDecoder, attempt
from .rules import Tiling


class ExactDecoder(ImageDecoder):
    """One file after another, in this thread; `min_side` changes nothing."""

    name: Literal["exact"] = "exact"

    def images(self, items: Sequence[bytes], max_pixels: int = MAX_PIXELS, min_side: int = 0) -> list[Decoded]:
        """As ImageDecoder.images."""
        return [attempt(decode_exact, data, max_pixels) for data in items]

    def tiles(self, items: Sequence[bytes], rule: Tiling, max_pixels: int = MAX_PIXELS) -> list[Decoded]:
        """As ImageDecoder.tiles."""
        return [attempt(_tiles_of, data, rule, max_pixels) for data in items]


def _tiles_of(data: bytes, rule: Tiling, max_pixels: int) -> np.ndarray:
    return rule.cut(decode_exact(data, max_pixels))
