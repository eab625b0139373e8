"""Draws the visual question task on a photograph: a frame, a shape, and a weave that only full resolution shows."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (230, 25, 40),
    "green": (30, 170, 60),
    "blue": (40, 70, 230),
    "yellow": (250, 225, 30),
    "pink": (250, 130, 200),
    "cyan": (40, 210, 230),
    "white": (250, 250, 250),
    "orange": (255, 140, 20),
}
SHAPES = ("disc", "square", "triangle", "cross")
# A checkerboard of single pixels in a colour and its complement: every 2x2 block averages to the same gray, so a
# picture at half size holds nothing of it.
WEAVES = {
    "ruby": (255, 0, 0),
    "jade": (0, 255, 0),
    "navy": (0, 0, 255),
    "amber": (255, 128, 0),
    "lime": (128, 255, 0),
    "violet": (128, 0, 255),
    "snow": (255, 255, 255),
}
FRAMES = {
    "gold": (212, 170, 40),
    "ivory": (250, 245, 220),
    "ebony": (35, 28, 25),
    "copper": (170, 85, 40),
    "steel": (100, 125, 150),
    "rose": (225, 120, 130),
}
FRAME_WIDTH = 7  # px
WEAVE_SIDE = 28  # px
SIDE = 112  # px of a rendered picture: two tiles of 56 px each way, so the thumbnail halves it


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is drawn, which is also the answer to every question."""

    colour: str  # of the shape
    frame: str
    weave: str
    shape: str
    quarter: int  # 0..3, where the shape stands; the weave stands in another


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene with every property drawn uniformly and independently."""
    return Scene(
        colour=str(rng.choice(list(COLOURS))),
        frame=str(rng.choice(list(FRAMES))),
        weave=str(rng.choice(list(WEAVES))),
        shape=str(rng.choice(SHAPES)),
        quarter=int(rng.integers(4)),
    )


def render(photo: Image.Image, scene: Scene, rng: np.random.Generator) -> Image.Image:
    """`photo` at SIDE x SIDE with the scene drawn on it."""
    canvas = photo.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    ImageDraw.Draw(canvas).rectangle((0, 0, SIDE - 1, SIDE - 1), outline=FRAMES[scene.frame], width=FRAME_WIDTH)
    _draw_shape(canvas, scene, _centre(scene.quarter, rng), radius=float(rng.uniform(17, 20)))
    elsewhere = (scene.quarter + int(rng.integers(1, 4))) % 4
    _weave_patch(canvas, WEAVES[scene.weave], _weave_place(elsewhere))
    return canvas


def _centre(quarter: int, rng: np.random.Generator) -> tuple[float, float]:
    row, column = divmod(quarter, 2)
    shift = rng.uniform(-2, 2, size=2)
    return (column + 0.5) * SIDE / 2 + shift[0], (row + 0.5) * SIDE / 2 + shift[1]


def _weave_place(quarter: int) -> tuple[int, int]:
    """The middle of a quarter, on even pixels, so that blocks of 2x2 are the thumbnail's."""
    row, column = divmod(quarter, 2)
    return column * SIDE // 2 + WEAVE_SIDE // 2, row * SIDE // 2 + WEAVE_SIDE // 2


def _draw_shape(canvas: Image.Image, scene: Scene, centre: tuple[float, float], radius: float) -> None:
    draw, fill, (x, y), r = ImageDraw.Draw(canvas), COLOURS[scene.colour], centre, radius
    outlines = {
        "square": [(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)],
        "triangle": [(x + r * math.sin(a), y - r * math.cos(a)) for a in (0, 2 * math.pi / 3, 4 * math.pi / 3)],
        "cross": [(x + dx * r, y + dy * r) for dx, dy in _CROSS],
    }
    if scene.shape == "disc":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    else:
        draw.polygon(outlines[scene.shape], fill=fill)


_ARM = 0.35
_CROSS = (
    (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
    (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
)  # fmt: skip


def _weave_patch(canvas: Image.Image, colour: tuple[int, int, int], place: tuple[int, int]) -> None:
    """Pixels alternate between the colour and its complement in both directions, fading out towards the rim.

    A resizing filter sees across a sharp rim and would leave a trace of the colour there.
    """
    sign = 1 - 2 * (np.indices((WEAVE_SIDE, WEAVE_SIDE)).sum(axis=0) % 2)
    strength = sign * np.outer(_FADE, _FADE)
    patch = 127.5 + strength[..., None] * (np.array(colour) - 127.5)
    canvas.paste(Image.fromarray(np.rint(patch).astype(np.uint8)), place)


_RAMP = np.sin(np.pi / 2 * np.arange(1, 5) / 5) ** 2
_FADE = np.concatenate([_RAMP, np.ones(WEAVE_SIDE - 2 * len(_RAMP)), _RAMP[::-1]])
