"""Pictures of many kinds, each one different: photographs that ship with scikit-image and scikit-learn, and renderings.

`Pictures(seed, sides).original(number)` is always the same picture, whoever asks and in whatever order, so that
processes share the work and a copy is made from its original without anything in between. Two photographs never share
a pixel in the same orientation: they are disjoint cells, each in eight orientations at most.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from megavlm.platform.demo.photos import PHOTOS, photo

from .renderings import RENDERINGS, Rng, Size, scatter

GRAY_PHOTOS = ("brick", "camera", "cell", "clock_motion", "grass", "gravel", "moon", "page")
# Round things are the same picture when they are turned: coins, and the rim of the eye against black.
COLOUR_PHOTOS = tuple(name for name in PHOTOS if name != "retina")
CELL = 80  # px of a photograph that one picture shows at most
BLOCK, CONTENT = 4, 4.0  # px; least mean step of gray between neighbouring blocks: empty sky is nobody's picture
TURNS = (None, *Image.Transpose)  # the eight orientations: PDQ tells them apart


@functools.cache
def scan(name: str) -> Image.Image:
    """One of the colour or the gray photographs, RGB."""
    if name in PHOTOS:
        return photo(name)
    spec = importlib.util.find_spec("skimage")
    assert spec is not None and spec.submodule_search_locations
    return Image.open(Path(spec.submodule_search_locations[0]) / "data" / f"{name}.png").convert("RGB")


@functools.cache
def cells() -> list[tuple[str, int, int]]:
    """(photograph, left, top) of every cell that shows something."""
    found = []
    for name in (*COLOUR_PHOTOS, *GRAY_PHOTOS):
        gray = scan(name).convert("L")
        for top in range(0, gray.height - CELL + 1, CELL):
            for left in range(0, gray.width - CELL + 1, CELL):
                if detail(gray.crop((left, top, left + CELL, top + CELL))) > CONTENT:
                    found.append((name, left, top))
    return found


def detail(gray: Image.Image) -> float:
    """Mean step between neighbouring blocks, in gray levels."""
    blocks = np.asarray(gray.reduce(BLOCK), dtype=np.float32)
    return float((np.abs(np.diff(blocks, axis=0)).mean() + np.abs(np.diff(blocks, axis=1)).mean()) / 2)


def piece(place: int, size: Size) -> Image.Image:
    """Piece `place` of len(TURNS) * len(cells()) at a size: the largest box of that shape in its cell, turned."""
    turn, cell = divmod(place, len(cells()))
    name, left, top = cells()[cell]
    scale = CELL / max(size)
    upright = (turn % 8) not in SIDEWAYS
    width, height = (round(side * scale) for side in (size if upright else size[::-1]))
    left, top = left + (CELL - width) // 2, top + (CELL - height) // 2
    image = scan(name).crop((left, top, left + width, top + height))
    how = TURNS[turn]
    return (image if how is None else image.transpose(how)).resize(size, Image.Resampling.BICUBIC)


SIDEWAYS = {TURNS.index(turn) for turn in (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270,
                                           Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE)}  # fmt: skip


# What each twenty-five originals are; the first five need a piece of a photograph each.
KINDS = ("photograph",) * 4 + ("scene",) + tuple(RENDERINGS) * 4


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The originals of a crawl; longer sides of `sides` pixels, shorter ones of half that or more."""

    seed: int
    sides: tuple[int, int]  # shortest and longest side

    def original(self, number: int) -> tuple[str, Image.Image]:
        """Kind and RGB image; raises IndexError when the photographs have no piece left for it."""
        turn, place = divmod(number, len(KINDS))
        kind, rng = KINDS[place], np.random.default_rng([self.seed, number])
        size = self._size(rng)
        if kind in RENDERINGS:
            return kind, RENDERINGS[kind](rng, size)
        image = piece(int(self._order[turn * 5 + place]), size)
        if kind == "scene":
            scatter(image, rng, int(rng.integers(3, 9)))
        return kind, image

    def _size(self, rng: Rng) -> Size:
        low, high = self.sides
        longer = int(rng.integers(low, high + 1))
        shorter = int(rng.integers(max(low, longer // 2), longer + 1))
        return (longer, shorter) if rng.random() < 0.5 else (shorter, longer)

    @functools.cached_property
    def _order(self) -> np.ndarray:
        return np.random.default_rng(self.seed).permutation(len(TURNS) * len(cells()))
