"""Pix2Struct's image encoder (Lee et al. 2023, arXiv 2210.03347): a ViT of as many patches as a budget allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt, model_validator

from megavlm.platform.errors import ConfigError

from ..costs import Cost, Setting
from ..layout import require_divisible
from ..maps import MapShape
from ..tower_blocks import self_attention
from ..tower_costs import Forward, Values
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

    def costs(self, setting: Setting) -> tuple[Cost, ...]:
        """Of one tile: every patch sees every other. No linear but the first has a bias."""
        patches = self.grid[0] * self.grid[1]
        layer, last = self._layer(Forward(setting), patches), Forward(setting)
        _normed(last, last.given(patches, self.hidden))
        return (self._embedding(Forward(setting), patches), *[layer] * self.layers, last.cost())

    def _embedding(self, f: Forward, patches: int) -> Cost:
        """After scaling in float32, whose products are not counted."""
        f.weigh(2 * self.positions * self.hidden)
        tile = f.given(self.image_size**2, 3, size=1, learns=False)
        wide = f.copy(tile, size=4)
        scaled = f.make(patches * self.patch_size**2, 3, wide, size=4)
        normed = f.copy(scaled, size=4)
        f.until_here(scaled)
        vectors = f.make(patches, 3 * self.patch_size**2, f.copy(normed, size=4))
        f.until_here(wide, normed)
        f.add(f.product(vectors, self.hidden))
        return f.cost()

    def _layer(self, f: Forward, patches: int) -> Cost:
        x = f.given(patches, self.hidden)
        attended = self_attention(f, _normed(f, x), self.heads, patches, bias=False)
        x = f.add(attended, x)
        normed = _normed(f, x)
        gate = _gelu(f, f.product(normed, self.ffn, bias=False))
        wide = f.times(gate, f.product(normed, self.ffn, bias=False))
        f.until_here(gate)
        f.add(f.product(wide, self.hidden, bias=False), x)
        f.until_here(normed, attended)
        return f.cost(again=True)

    def build(self, ctx: BuildContext) -> Pix2StructModel:
        """The encoder on transformers' layers, weights not drawn."""
        from .pix2struct_model import Pix2StructModel

        return Pix2StructModel(self, ctx)


def _normed(f: Forward, x: Values) -> Values:
    """transformers' Pix2StructLayerNorm: a norm without mean and bias, in float32."""
    f.weigh(int(x.width))
    wide = f.copy(x, size=4)
    root = f.make(x.rows, 1, f.make(x.rows, x.width, wide, keeps=(wide,), size=4), size=4)
    normed = f.copy(f.make(x.rows, x.width, x, root, keeps=(x, root), size=4), size=f.size)
    return f.make(x.rows, x.width, normed, learns=(normed,))


def _gelu(f: Forward, x: Values) -> Values:
    """x / 2 * (1 + tanh(c (x + d x**3))), operation by operation: transformers' NewGELUActivation."""
    half = f.copy(x)
    cube = f.make(x.rows, x.width, x, keeps=(x,))
    inner = f.copy(f.add(x, f.copy(cube)))
    return f.times(half, f.copy(f.make(x.rows, x.width, inner, itself=True)))
