"""The trunk of ConvNeXt (Liu et al. 2022, arXiv 2201.03545), as OpenCLIP published ConvNeXt-XXL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt, model_validator

from megavlm.platform.errors import ConfigError

from ..costs import Cost, Setting
from ..maps import MapShape
from ..tower_blocks import gelu, mlp, normalised
from ..tower_costs import Forward
from .expert import CLIP_MEAN, CLIP_STD, Expert

if TYPE_CHECKING:
    from ..contracts import BuildContext
    from .convnext_model import ConvNeXtModel

PATCH = 4  # side of the first convolution's patches; each later stage halves the grid
STRIDE = 32  # of the features
KERNEL = 7  # side of the depthwise convolutions
WIDENING = 4  # of the MLP in a block

FourSizes = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]


class ConvNeXt(Expert):
    """Shape of a ConvNeXt; the defaults are ConvNeXt-XXL, as CLIP trained it, at the 1024 px of Eagle.

    The features are what the fourth stage gives, before any norm (Eagle 1, arXiv 2408.15998, released code). Of the
    published names `head.norm.*` and `head.fc.*` are not built. A block's layer scale is called `gamma`, as in
    timm; Eagle's checkpoints call it `weight`.
    """

    name: Literal["convnext"] = "convnext"
    image_size: PositiveInt = 1024
    depths: FourSizes = (3, 4, 30, 3)  # blocks of each stage
    dims: FourSizes = (384, 768, 1536, 3072)  # channels of each stage
    layer_scale: float = 1e-6  # what the per-channel scale of each block starts from: the paper's
    norm_eps: float = 1e-5
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    @model_validator(mode="after")
    def _sizes_fit(self) -> ConvNeXt:
        if self.image_size % STRIDE:
            raise ConfigError(
                f"encoder.image_size {self.image_size} does not divide by {STRIDE}, the stride of the features",
                where="encoder.image_size",
                fix=f"set it to {-(-self.image_size // STRIDE) * STRIDE}",
            )
        return self

    @property
    def maps(self) -> tuple[MapShape, ...]:
        """One map: a cell for every 32 x 32 pixels."""
        side = self.image_size // STRIDE
        return (MapShape(self.name, -1, side, side, self.dims[-1]),)

    def costs(self, setting: Setting) -> tuple[Cost, ...]:
        """Of one tile: the stem, and of each stage the way in and its blocks."""
        found = [self._stem(Forward(setting))]
        for stage, (depth, width) in enumerate(zip(self.depths, self.dims, strict=True)):
            cells = (self.image_size // (PATCH << stage)) ** 2
            entered = 4 * cells * self.dims[stage - 1] if stage else cells * width
            found += [_halving(Forward(setting), 4 * cells, self.dims[stage - 1], width)] if stage else []
            found += [_block(Forward(setting), cells, width, entered * (stage > 0))]
            found += [_block(Forward(setting), cells, width, entered)] * (depth - 1)
        return tuple(found)

    def _stem(self, f: Forward) -> Cost:
        cells = (self.image_size // PATCH) ** 2
        f.norm(f.product(normalised(f, self.image_size**2, cells), self.dims[0]))
        return f.cost()

    def build(self, ctx: BuildContext) -> ConvNeXtModel:
        """The encoder on timm's stages, weights not drawn."""
        from .convnext_model import ConvNeXtModel

        return ConvNeXtModel(self, ctx)


def _halving(f: Forward, cells: int, old: int, new: int) -> Cost:
    """A norm, and a convolution of 2 x 2 cells."""
    f.weigh((4 * old + 1) * new)
    f.convolution(f.norm(f.given(cells, old)), cells // 4, new, 4 * old)
    return f.cost()


def _block(f: Forward, cells: int, width: int, entered: int) -> Cost:
    """A depthwise convolution, a norm, an MLP, the layer scale; callers hold what its stage began with."""
    f.weigh((KERNEL**2 + 1) * width)
    f.held(entered)
    x = f.given(cells, width)
    around = f.norm(f.convolution(x, cells, width, KERNEL**2))
    f.add(f.scale(mlp(f, around, WIDENING * width, width, gelu)), x)
    return f.cost(again=True)
