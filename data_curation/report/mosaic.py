"""Many pictures in one file: squares side by side, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from megavlm.platform.report import Report

from .pictures import encoded

if TYPE_CHECKING:
    from PIL.Image import Image

COLUMNS = 8
TILE, GAP = 96, 3  # px


def mosaic(images: Sequence[Image], columns: int = COLUMNS) -> Image:
    """Each image's middle square at TILE px, in reading order; what stays empty is transparent."""
    from PIL import Image, ImageOps

    across = min(columns, max(len(images), 1))
    down = -(-len(images) // across)
    whole = Image.new("RGBA", (across * (TILE + GAP) - GAP, max(down, 1) * (TILE + GAP) - GAP), (0, 0, 0, 0))
    for place, image in enumerate(images):
        whole.paste(ImageOps.fit(image.convert("RGB"), (TILE, TILE)), corner(place, across))
    return whole


def show(report: Report, title: str, images: Sequence[Image], text: str) -> None:
    """A mosaic in its own size, or the text alone where there are no images."""
    whole = mosaic(images)
    report.picture(title, encoded(whole) if images else b"", text, whole.width)


def corner(place: int, across: int) -> tuple[int, int]:
    """Left and upper edge of tile number `place`, px."""
    row, column = divmod(place, across)
    return column * (TILE + GAP), row * (TILE + GAP)
