"""From any of Pillow's pixel modes to 8-bit RGB."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageFile

WHITE = 255


class UnsupportedPixels(ValueError):
    """Pixels without a defined range (32-bit integers, floats)."""


def rgb_pixels(image: ImageFile.ImageFile, data: bytes) -> np.ndarray:
    """Pixels of the opened `image` of `data` as uint8 RGB [H, W, 3], not yet oriented; transparency on white."""
    if image.format == "PNG" and image.tile and image.tile[0].args in _PLANES:
        return _deep_png(image, data)
    if image.mode.startswith("I;16"):
        return _deep_gray(image)
    if image.mode in ("I", "F"):
        raise UnsupportedPixels(f"pixels of mode {image.mode} have no defined range")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (WHITE,) * 4)
        return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def _deep_gray(image: Image.Image) -> np.ndarray:
    samples = np.asarray(image).astype(np.uint16)
    gray = _to_eight_bits(samples)
    transparent = image.info.get("transparency")
    if transparent is not None:
        gray = np.where(samples == transparent, np.uint8(WHITE), gray)
    return np.repeat(gray[..., None], 3, axis=2)


# Pillow's raw mode for a 16-bit colour PNG -> the raw modes that unpack the high and the low byte of each sample.
# It has no 16-bit colour mode and keeps the high byte alone, which is off by one for about half of all values.
_PLANES = {"RGB;16B": ("RGB;16B", "RGB;16L"), "RGBA;16B": ("RGBA;16B", "RGBA;16L"), "LA;16B": ("RGBA",)}


def _deep_png(image: ImageFile.ImageFile, data: bytes) -> np.ndarray:
    rawmode = str(image.tile[0].args)
    planes = [_unpack(data, plane) for plane in _PLANES[rawmode]]
    if rawmode == "LA;16B":  # four bytes a pixel: gray high, gray low, alpha high, alpha low
        pairs = planes[0].astype(np.uint16)
        gray, alpha = pairs[..., 0] << 8 | pairs[..., 1], pairs[..., 2] << 8 | pairs[..., 3]
        return _on_white(np.repeat(gray[..., None], 3, axis=2), alpha)
    samples = planes[0].astype(np.uint16) << 8 | planes[1]
    if rawmode == "RGBA;16B":
        return _on_white(samples[..., :3], samples[..., 3])
    image.load()  # reads the chunks after the pixels too: EXIF may stand there
    transparent = image.info.get("transparency")
    pixels = _to_eight_bits(samples)
    if transparent is not None:
        pixels[(samples == np.asarray(transparent)).all(axis=2)] = WHITE
    return pixels


def _unpack(data: bytes, rawmode: str) -> np.ndarray:
    image = Image.open(io.BytesIO(data), formats=("PNG",))
    image.tile = [tile._replace(args=rawmode) for tile in image.tile]
    return np.asarray(image)


def _on_white(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """uint16 colour [H, W, 3] over white by uint16 alpha [H, W], to 8 bits."""
    color8, alpha8 = _to_eight_bits(color).astype(np.uint32), _to_eight_bits(alpha)[..., None].astype(np.uint32)
    return ((color8 * alpha8 + WHITE * (255 - alpha8) + 127) // 255).astype(np.uint8)


def _to_eight_bits(samples: np.ndarray) -> np.ndarray:
    """round(v / 257): 0..65535 -> 0..255 (PNG specification, 13.12 sample depth rescaling)."""
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
