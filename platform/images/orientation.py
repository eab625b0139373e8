"""EXIF orientation (tag 0x0112, EXIF 2.32 section 4.6.4): which way up an image is shown."""

from __future__ import annotations

import numpy as np
from PIL import ExifTags, Image


def orientation(image: Image.Image) -> int:
    """The orientation 1..8 of an opened image; 1 when there is none, or when the EXIF block cannot be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block raises a dozen types; the picture itself may still be good
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def oriented(pixels: np.ndarray, value: int) -> np.ndarray:
    """[H, W, 3] as stored -> as displayed: [W, H, 3] for orientation 5..8."""
    if value >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if value in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if value in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
