"""One image's bytes to an RGB array. Pillow is the exact reference; plain JPEGs take libjpeg-turbo directly."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import cast

import numpy as np
import simplejpeg
from PIL import Image, ImageFile, UnidentifiedImageError

from ..errors import InputError
from .orientation import orientation, oriented
from .pixels import UnsupportedPixels, rgb_pixels

# Two times Pillow's own MAX_IMAGE_PIXELS, where Pillow itself starts to refuse.
MAX_PIXELS = 178_956_970

# Raster formats only: Pillow would otherwise hand PostScript to an external interpreter. JPEG includes MPO, the JPEG of
# several pictures that cameras write.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "AVIF")


class BadImage(InputError):
    """An image that cannot be used.

    `reason`: "empty" (no bytes), "not_an_image" (no format of FORMATS), "truncated", "too_large" (its header promises
    more than max_pixels), "too_thin" (a tiling can't cut what is so much longer than wide), "unreadable" (anything
    else).
    """

    def __init__(self, reason: str, what: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}: {what}")


@dataclass(frozen=True)
class ImageInfo:
    """What the header says: pixels as displayed (EXIF rotation applied), so decode() returns [height, width, 3]."""

    width: int
    height: int
    format: str


def probe(data: bytes, *, max_pixels: int = MAX_PIXELS) -> ImageInfo:
    """Read the header only; raises BadImage ("empty", "not_an_image", "too_large", "truncated", "unreadable")."""
    image = open_image(data, max_pixels)
    return ImageInfo(*displayed_size(image), cast(str, image.format))


def decode_exact(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """What `decoders.decode` documents, at full size; above MAX_PIXELS Pillow's own limit holds. Raises BadImage."""
    image = open_image(data, max_pixels)
    pixels = decode_turbo(data, image) if is_plain_jpeg(image) else None
    return decode_pillow(data, image) if pixels is None else pixels


def is_plain_jpeg(image: Image.Image) -> bool:
    """Whether an opened image is a JPEG in colour or gray, which libjpeg-turbo turns into the RGB that Pillow gives."""
    return image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")


def decode_turbo(data: bytes, image: Image.Image) -> np.ndarray | None:
    """libjpeg-turbo straight to RGB, for the JPEG whose opened header is `image`; None when Pillow should judge it.

    Raises BadImage as `stored_pixels` does.
    """
    pixels = stored_pixels(data, image)
    return None if pixels is None else oriented(pixels, orientation(image))


def stored_pixels(data: bytes, image: Image.Image, reduction: int = 1) -> np.ndarray | None:
    """What decode_turbo gives, not yet turned; with `reduction` 2, 4 or 8 both sides are divided by it, rounded up.

    That is done inside the inverse cosine transform, which then costs less. Raises BadImage("truncated") when the pixel
    data ends early, even where a marker follows and Pillow would fill in.
    """
    least = {"min_width": -(-image.width // reduction), "min_height": -(-image.height // reduction)}
    try:
        # strict: without it the missing part of a truncated file is silently padded.
        return simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True, **least)
    except ValueError as error:
        if "premature end" in str(error).lower():
            raise BadImage("truncated", str(error)) from error
        return None


def decode_pillow(data: bytes, image: ImageFile.ImageFile) -> np.ndarray:
    """The exact reference: what Pillow decodes, for every format, for the opened `image` of `data`."""
    try:
        pixels = rgb_pixels(image, data)
    except UnsupportedPixels as error:
        raise BadImage("unreadable", str(error)) from error
    except Exception as error:  # Pillow's decoders raise a dozen types on hostile bytes; each costs this one sample
        raise BadImage(_reason(error, data), f"{type(error).__name__}: {error}") from error
    return oriented(pixels, orientation(image))


def displayed_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    """(width, height) of an opened image once its EXIF rotation is applied."""
    width, height = image.size
    # Pillow already reports TIFF sizes as displayed.
    return (height, width) if image.format != "TIFF" and orientation(image) >= 5 else (width, height)


def open_image(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """The header, read by Pillow; raises BadImage as `probe` does."""
    if not data:
        raise BadImage("empty", "no bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        reason = "truncated" if cut_short(data) else "not_an_image"
        raise BadImage(reason, f"{len(data)} bytes in no known image format") from error
    except Image.DecompressionBombError as error:
        raise BadImage("too_large", str(error)) from error
    except Exception as error:  # as in decode_pillow
        raise BadImage(_reason(error, data), f"{type(error).__name__}: {error}") from error
    width, height = image.size
    if not width or not height:
        raise BadImage("unreadable", f"{width}x{height} pixels")
    if width * height > max_pixels:
        raise BadImage("too_large", f"{width}x{height} is more than {max_pixels} pixels")
    return image


def _reason(error: Exception, data: bytes) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return "too_large"
    cut = isinstance(error, EOFError) or "truncated" in str(error).lower() or cut_short(data)
    return "truncated" if cut else "unreadable"


def cut_short(data: bytes) -> bool:
    """Whether unusable `data` is a file cut off, where Pillow's error doesn't tell.

    A WebP states its size (RIFF: bytes 4..7); a JPEG ends in an end marker, but for padding.
    """
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    return data.startswith(b"\xff\xd8\xff") and not data.rstrip(b"\0").endswith(b"\xff\xd9")
