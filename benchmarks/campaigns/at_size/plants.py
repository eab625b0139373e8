"""What is planted in a crawl: copies of originals, the icon of lost pictures, and bad files with their reasons."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from megavlm.platform.demo.plants import Plant, bad_files

from .renderings import Rng, colour, font, shapes

LEAST_SIDE = 64  # px; no copy is made smaller, which is what PDQ looks at and what the recipe's filter asks
FORMATS = (("jpg", "JPEG", {"quality": 92}), ("png", "PNG", {"compress_level": 1}), ("webp", "WEBP", {"quality": 90}))


def encode(image: Image.Image, rng: Rng) -> tuple[str, bytes]:
    """Extension and bytes; three in five are JPEGs."""
    extension, name, options = FORMATS[int(rng.choice(3, p=(0.6, 0.2, 0.2)))]
    return extension, saved(image, name, **options)


def saved(image: Image.Image, name: str, **options: Any) -> bytes:
    """An image's bytes in one of Pillow's formats."""
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def recompressed(image: Image.Image, rng: Rng) -> tuple[str, bytes]:
    """JPEG of quality 30 to 60."""
    return "jpg", saved(image, "JPEG", quality=int(rng.integers(30, 61)))


def resized(image: Image.Image, rng: Rng) -> tuple[str, bytes]:
    """50 to 200 % of the size."""
    scale = rng.uniform(max(0.5, LEAST_SIDE / min(image.size)), 2.0)
    size = (round(image.width * scale), round(image.height * scale))
    return encode(image.resize(size, Image.Resampling.BICUBIC), rng)


def watermarked(image: Image.Image, rng: Rng) -> tuple[str, bytes]:
    """Half-transparent words, 6 to 10 % of the shorter side high, somewhere."""
    layer, height = Image.new("RGBA", image.size), max(9, round(min(image.size) * rng.uniform(0.06, 0.1)))
    place = (int(rng.integers(2, image.width // 3)), int(rng.integers(2, image.height - height - 4)))
    ImageDraw.Draw(layer).text(
        place, "SAMPLE photo", fill=(255, 255, 255, int(rng.integers(80, 141))), font=font(height)
    )
    return encode(Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB"), rng)


COPIES: dict[str, Callable[[Image.Image, Rng], tuple[str, bytes]]] = {
    "recompressed": recompressed, "resized": resized, "watermarked": watermarked,
}  # fmt: skip
BAD = (*(plant.kind for plant in bad_files(Image.new("RGB", (64, 64)))), "stripe", "one colour")


def bad_file(kind: str, rng: Rng) -> Plant:
    """One file of a kind in BAD, with the reason it has to be dropped for."""
    picture, blank = shapes(rng, (120, 100)), Image.new("RGB", (120, 100), colour(rng))
    own = {
        "stripe": Plant("stripe", "png", saved(picture.resize((400, 80)), "PNG"), reason="aspect_ratio"),
        "one colour": Plant("one colour", "jpg", saved(blank, "JPEG"), reason="flat_image"),
    }
    return own.get(kind) or next(plant for plant in bad_files(picture) if plant.kind == kind)


@functools.cache
def reasons() -> dict[str, str]:
    """Kind of bad file -> why it has to be dropped."""
    plants = [bad_file(kind, np.random.default_rng(0)) for kind in BAD]
    return {plant.kind: str(plant.reason) for plant in plants}


@functools.cache
def icon() -> bytes:
    """The picture that sites show in place of one that they lost."""
    image = Image.new("RGB", (130, 130), (225, 225, 225))
    draw = ImageDraw.Draw(image)
    draw.rectangle((20, 16, 110, 82), fill=(250, 250, 250), outline=(90, 90, 90), width=4)
    draw.polygon([(26, 76), (52, 38), (70, 62), (82, 50), (104, 76)], fill=(120, 120, 120))
    draw.text((12, 92), "image not\navailable", fill=(60, 60, 60), font=font(15))
    return saved(image, "PNG")
