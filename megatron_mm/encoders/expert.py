"""What the experts of a mixture have in common: encoders that are whole on every process."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveInt

from ..maps import MapShape
from .base import Encoder

if TYPE_CHECKING:
    from ..config import Parallel

# How CLIP's training normalised RGB in 0..1; the released Eagle gives all its experts that (preprocessor_config.json).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Expert(Encoder):
    """An encoder that no layout splits. Under FP8 it stays in bfloat16.

    A subclass says `maps`, `parameters`, `flops` and `build`.
    """

    parts: ClassVar[Mapping[str, int]] = MappingProxyType({})  # what a stage can train apart from the rest: none

    name: str
    image_size: PositiveInt  # side of a square tile, in pixels
    mean: tuple[float, float, float]  # of RGB in 0..1
    std: tuple[float, float, float]

    @property
    def maps(self) -> tuple[MapShape, ...]:
        """The feature maps of one tile."""
        raise NotImplementedError

    def check(self, parallel: Parallel) -> None:
        """Fits every layout: it is not split."""

    def fp8_widths(self, parallel: Parallel) -> list[tuple[str, int, int]]:
        """None: it stays in bfloat16."""
        return []
