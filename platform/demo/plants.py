"""Known near-duplicates and bad files, planted among the crops so that curation can be scored."""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .photos import jpeg, png


@dataclasses.dataclass(frozen=True)
class Plant:
    """One planted sample. `reason` is what curation has to call it, None where it must come through converted."""

    kind: str
    extension: str
    data: bytes
    reason: str | None = None
    caption: str | None = "a planted sample"
    json: bytes | None = None


def recompressed(image: Image.Image, rng: np.random.Generator) -> bytes:
    """A copy saved again at JPEG quality 30 to 60."""
    return jpeg(image, quality=int(rng.integers(30, 61)))


def resized(image: Image.Image, rng: np.random.Generator) -> bytes:
    """A copy at 70 to 85 % of its size."""
    scale = rng.uniform(0.70, 0.85)
    size = (round(image.width * scale), round(image.height * scale))
    return jpeg(image.resize(size, Image.Resampling.BICUBIC))


def watermarked(image: Image.Image, rng: np.random.Generator) -> bytes:
    """A copy with half-transparent text across it."""
    layer = Image.new("RGBA", image.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    place = (int(rng.integers(2, image.width // 4)), int(rng.integers(2, image.height - 20)))
    draw.text(place, "(c) stock photo", fill=(255, 255, 255, 110), font=ImageFont.load_default(size=11))
    return jpeg(Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB"))


def cropped(image: Image.Image, rng: np.random.Generator) -> bytes:
    """A copy without the outer 4 to 8 % of one corner's two sides."""
    x, y = (round(side * rng.uniform(0.04, 0.08)) for side in image.size)
    return jpeg(image.crop((x, y, image.width, image.height)))


# Those that a perceptual hash is expected to find, then the one reported without a bound.
COPIES: dict[str, Callable[[Image.Image, np.random.Generator], bytes]] = {
    "recompressed": recompressed,
    "resized": resized,
    "watermarked": watermarked,
    "cropped": cropped,
}
BOUNDED_COPIES = ("recompressed", "resized", "watermarked")


def bad_files(image: Image.Image) -> list[Plant]:
    """One of each bad file that a crawl holds; every one costs itself and nothing else."""
    good = jpeg(image)
    return [
        Plant("truncated JPEG", "jpg", good[: len(good) // 2], reason="truncated"),
        Plant("zero bytes", "jpg", b"", reason="empty"),
        Plant("text named .jpg", "jpg", b"<html>404 not found</html>", reason="not_an_image"),
        Plant("decompression bomb", "png", bomb(), reason="too_large"),
        Plant("missing caption", "jpg", jpeg(image.rotate(90)), reason="missing_caption", caption=None),
        Plant("invalid JSON", "jpg", jpeg(image.rotate(180)), reason="invalid_json", json=b'{"width": '),
        Plant("small image", "jpg", jpeg(image.resize((40, 40))), reason="too_small"),
    ]


def odd_files(images: list[Image.Image]) -> list[Plant]:
    """Formats that must be converted right and kept."""
    cmyk, deep, palette, turned, moving = images
    return [
        Plant("CMYK", "jpg", jpeg(cmyk.convert("CMYK"))),
        Plant("16-bit PNG", "png", deep_png(np.asarray(deep.convert("L"), dtype=np.uint16) * 257)),
        Plant("palette PNG", "png", png(palette.quantize(64))),
        Plant("EXIF rotation", "jpg", rotated_by_exif(turned)),
        Plant("GIF", "gif", gif(moving)),
    ]


def bomb(side: int = 30_000) -> bytes:
    """A valid PNG header that claims side x side pixels, in a hundred bytes."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def deep_png(gray: np.ndarray) -> bytes:
    """A 16-bit gray PNG from uint16 [H, W]."""
    buffer = io.BytesIO()
    Image.fromarray(gray).save(buffer, "PNG")
    return buffer.getvalue()


def rotated_by_exif(image: Image.Image) -> bytes:
    """A JPEG stored on its side whose EXIF orientation (6: turn 90 degrees clockwise) puts it upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.rotate(90, expand=True).save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


def gif(image: Image.Image) -> bytes:
    """A GIF of two frames, the image first and its negative second."""
    buffer = io.BytesIO()
    negative = Image.eval(image, lambda value: 255 - value)
    image.quantize(128).save(buffer, "GIF", save_all=True, append_images=[negative.quantize(128)])
    return buffer.getvalue()
