"""Renderings: pages, plots, noise, shapes and tiles, each one different."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Rng = np.random.Generator
Size = tuple[int, int]  # width, height


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font; loading one costs as much as a picture."""
    return ImageFont.load_default(size)


def colour(rng: Rng, low: int = 0, high: int = 256) -> tuple[int, int, int]:
    """Any colour with channels of low..high-1."""
    red, green, blue = (int(value) for value in rng.integers(low, high, 3))
    return red, green, blue


def page(rng: Rng, size: Size) -> Image.Image:
    """A page: a heading, columns of words in lines of several sizes, and boxes in between."""
    image = Image.new("RGB", size, colour(rng, 170))
    draw, columns = ImageDraw.Draw(image), int(rng.integers(1, 4))
    for column in range(columns):
        left, y = column * size[0] / columns + 3, float(rng.uniform(0, 0.2) * size[1])
        while y < size[1]:
            height, ink = int(rng.integers(6, 22)), colour(rng, 0, 120)
            if rng.random() < 0.25:
                box = (left, y, left + rng.uniform(0.2, 0.95) * size[0] / columns, y + rng.uniform(1, 4) * height)
                draw.rectangle(box, fill=colour(rng))
                y = box[3] + 3
                continue
            letters = "".join(chr(97 + int(one)) if one < 26 else " " for one in rng.integers(0, 31, 60))
            wide = int(rng.uniform(0.2, 0.9) * size[0] / columns / height * 2)
            draw.text((left, y), letters[:wide], fill=ink, font=font(height))
            y += height * float(rng.uniform(1.0, 1.8))
    return image


def plot(rng: Rng, size: Size) -> Image.Image:
    """Bars, a line or dots between axes, on one to four panels."""
    image = Image.new("RGB", size, colour(rng, 190))
    across, down = (int(count) for count in rng.integers(1, 3, 2))
    for row in range(down):
        for column in range(across):
            width, height = size[0] / across, size[1] / down
            _panel(ImageDraw.Draw(image), rng, (column * width + 6, row * height + 4, width - 10, height - 10))
    return image


def _panel(draw: ImageDraw.ImageDraw, rng: Rng, box: tuple[float, float, float, float]) -> None:
    left, top, width, height = box
    draw.rectangle((left, top, left + width, top + height), fill=colour(rng, 120), outline=(0, 0, 0))
    count, ink = int(rng.integers(5, 16)), colour(rng, 0, 150)
    xs, ys = left + width * np.arange(count) / count, top + height * rng.uniform(0, 1, count)
    kind = rng.integers(3)
    if kind == 0:
        for x, y in zip(xs, ys, strict=True):
            draw.rectangle((x, y, x + 0.8 * width / count, top + height), fill=ink)
    elif kind == 1:
        draw.line(list(zip(xs, ys, strict=True)), fill=ink, width=int(rng.integers(2, 7)))
    else:
        for x, y, r in zip(xs, ys, rng.uniform(2, 0.15 * height + 3, count), strict=True):
            draw.ellipse((x - r, y - r, x + r, y + r), fill=colour(rng))


def noise(rng: Rng, size: Size) -> Image.Image:
    """Fractal noise: octaves of random values, each weaker than the one before by a random factor."""
    total, weight, fall = np.zeros((size[1], size[0], 3), np.float32), 1.0, rng.uniform(0.5, 0.9)
    for side in (3, 6, 12, 24):
        values = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        total += weight * (np.asarray(values.resize(size, Image.Resampling.BICUBIC), np.float32) - 128)
        weight *= fall
    return Image.fromarray((128 + total / 1.5).clip(0, 255).astype(np.uint8))


def shapes(rng: Rng, size: Size) -> Image.Image:
    """Discs, boxes and triangles on a gradient."""
    corners = Image.fromarray(rng.integers(0, 256, (2, 2, 3), dtype=np.uint8))
    image = corners.resize(size, Image.Resampling.BILINEAR)
    scatter(image, rng, int(rng.integers(10, 30)))
    return image


def scatter(image: Image.Image, rng: Rng, count: int) -> None:
    """Draw discs, boxes and triangles anywhere on an image."""
    draw, size = ImageDraw.Draw(image), image.size
    for _ in range(count):
        x, y, r = rng.uniform(0, size[0]), rng.uniform(0, size[1]), rng.uniform(0.04, 0.22) * max(size)
        turn, sides = rng.uniform(0, 7), int(rng.integers(2, 6))
        if sides == 2:
            draw.ellipse((x - r, y - r, x + r, y + r), fill=colour(rng))
            continue
        angles = [turn + 2 * math.pi * side / sides for side in range(sides)]
        draw.polygon([(x + r * math.cos(a), y + r * math.sin(a)) for a in angles], fill=colour(rng))


def mosaic(rng: Rng, size: Size) -> Image.Image:
    """Tiles like an identicon's, some split by a diagonal."""
    image = Image.new("RGB", size)
    draw, across, down = ImageDraw.Draw(image), int(rng.integers(5, 10)), int(rng.integers(5, 10))
    width, height = size[0] / across, size[1] / down
    for number in range(across * down):
        x, y = number % across * width, number // across * height
        draw.rectangle((x, y, x + width, y + height), fill=colour(rng))
        if rng.random() < 0.4:
            draw.polygon([(x, y), (x + width, y), (x, y + height)], fill=colour(rng))
    return image


RENDERINGS: dict[str, Callable[[Rng, Size], Image.Image]] = {
    "page": page, "plot": plot, "noise": noise, "shapes": shapes, "mosaic": mosaic,
}  # fmt: skip
