"""What the experts of a mixture have in common: encoders that are whole on every process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import PositiveInt, model_validator

from megavlm.platform.errors import ConfigError

from ..costs import Cost, Setting
from ..layout import require_divisible
from ..maps import MapShape
from .base import Encoder

if TYPE_CHECKING:
    from torch.nn import Module

    from ..config import Parallel
    from ..contracts import BuildContext

# How CLIP's training normalised RGB in 0..1; the released Eagle gives all its experts that (preprocessor_config.json).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Expert(Encoder, ABC):
    """An encoder that no layout splits. Under FP8 it stays in bfloat16."""

    parts: ClassVar[Mapping[str, int]] = MappingProxyType({})  # what a stage can train apart from the rest: none

    name: str
    image_size: PositiveInt  # side of a square tile, in pixels
    mean: tuple[float, float, float]  # of RGB in 0..1
    std: tuple[float, float, float]

    @property
    @abstractmethod
    def maps(self) -> tuple[MapShape, ...]:
        """The feature maps of one tile."""

    @abstractmethod
    def costs(self, setting: Setting) -> tuple[Cost, ...]:
        """As Encoder's."""

    @abstractmethod
    def build(self, ctx: BuildContext) -> Module:
        """The encoder, weights not drawn."""

    def check(self, parallel: Parallel) -> None:
        """Fits every layout: it is not split."""

    def fp8_widths(self, parallel: Parallel) -> list[tuple[str, int, int]]:
        """None: it stays in bfloat16."""
        return []


class PatchExpert(Expert):
    """A ViT whose positions are a table, resized where it is for another size than the tile's."""

    leaves_border: ClassVar[bool] = False  # one narrower than a patch may be left over, and is not read

    trained_size: PositiveInt | None = None  # what the table is for, if not image_size
    patch_size: PositiveInt
    layers: PositiveInt
    hidden: PositiveInt
    heads: PositiveInt
    ffn: PositiveInt

    @model_validator(mode="after")
    def _patches_fit(self) -> Self:
        require_divisible(self.hidden, "encoder.hidden", self.heads, "encoder.heads")
        self._check_side("image_size", self.image_size)
        self._check_side("trained_size", self.trained_side)
        return self

    def _check_side(self, key: str, side: int) -> None:
        if not self.leaves_border:
            require_divisible(side, f"encoder.{key}", self.patch_size, "encoder.patch_size")
        elif side < self.patch_size:
            raise ConfigError(
                f"encoder.{key} {side} is less than encoder.patch_size {self.patch_size}",
                where=f"encoder.{key}",
                fix=f"set it to {self.patch_size} or more",
            )

    @property
    def trained_side(self) -> int:
        """Side of the tiles that the table of positions is for, in pixels."""
        return self.trained_size or self.image_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in a tile."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def table(self) -> tuple[int, int]:
        """Rows and columns of patches that the table of positions is for."""
        side = self.trained_side // self.patch_size
        return side, side

    @property
    def maps(self) -> tuple[MapShape, ...]:
        """One map: what the last layer gives."""
        return (MapShape(self.name, -1, *self.grid, self.hidden),)
