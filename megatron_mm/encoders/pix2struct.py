"""Pix2Struct's image encoder (Lee et al. 2023, arXiv 2210.03347): a ViT of as many patches as a budget allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt, model_validator

from megavlm.platform.errors import ConfigError

from ..flops import Flops
from ..layout import require_divisible
from ..maps import MapShape
from .expert import Expert

if TYPE_CHECKING:
    from ..contracts import BuildContext
    from .pix2struct_model import Pix2StructModel


class Pix2Struct(Expert):
    """Shape of a Pix2Struct encoder; the defaults are google/pix2struct-large, Eagle's "pix2struct-1024".

    A tile is scaled to as many whole patches as `max_patches` allows: 1024 px to 720, 45 x 45 patches. Each tile is
    normalised by the mean and deviation of all its values. The features have passed the norm after the last layer.

    base: layers=12, hidden=768, heads=12, ffn=2048.
    """

    name: Literal["pix2struct"] = "pix2struct"
    image_size: PositiveInt = 1024
    patch_size: PositiveInt = 16
    max_patches: PositiveInt = 2048
    positions: PositiveInt = 4096  # rows, and columns, that the tables of positions have; 0 is for padding
    layers: PositiveInt = 18
    hidden: PositiveInt = 1536
    heads: PositiveInt = 24
    ffn: PositiveInt = 3968
    norm_eps: float = 1e-6
    # Of no effect: a tile is normalised by itself. The released Eagle undoes what its experts share before that.
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @model_validator(mode="after")
    def _sizes_fit(self) -> Pix2Struct:
        require_divisible(self.hidden, "encoder.hidden", self.heads, "encoder.heads")
        if self.grid[0] >= self.positions:
            raise ConfigError(
                f"encoder.positions {self.positions}: a tile has {self.grid[0]} rows, counted from 1",
                where="encoder.positions",
                fix=f"set it to {self.grid[0] + 1} or more, or encoder.max_patches to less",
            )
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in a scaled tile, in the image processor's arithmetic."""
        per_pixel = self.patch_size / self.image_size
        scale = (self.max_patches * per_pixel * per_pixel) ** 0.5
        side = max(min(int(scale * self.image_size / self.patch_size), self.max_patches), 1)
        return side, side

    @property
    def maps(self) -> tuple[MapShape, ...]:
        """The one feature map of a tile: the last layer's, normed."""
        return (MapShape(self.name, -1, *self.grid, self.hidden),)

    def parameters(self) -> int:
        """Parameters; its layers have no bias."""
        width = self.hidden
        embedding = (3 * self.patch_size**2 + 1 + 2 * self.positions) * width
        layer = 4 * width**2 + 3 * width * self.ffn + 2 * width
        return embedding + self.layers * layer + width

    def flops(self) -> Flops:
        """Forward FLOPs of one tile: every patch sees every other. Scaling the pixels is not counted."""
        patches = self.grid[0] * self.grid[1]
        return Flops(
            weights=2.0 * self.layers * patches * (4 * self.hidden**2 + 3 * self.hidden * self.ffn),
            mixing=4.0 * self.layers * patches**2 * self.hidden,
            entrance=2.0 * patches * 3 * self.patch_size**2 * self.hidden,
        )

    def build(self, ctx: BuildContext) -> Pix2StructModel:
        """The encoder on transformers' layers, weights not drawn."""
        from .pix2struct_model import Pix2StructModel

        return Pix2StructModel(self, ctx)
