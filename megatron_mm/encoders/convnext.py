"""The trunk of ConvNeXt (Liu et al. 2022, arXiv 2201.03545), as OpenCLIP published ConvNeXt-XXL."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt, model_validator

from megavlm.platform.errors import ConfigError

from ..flops import Flops
from ..maps import MapShape
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

    def parameters(self) -> int:
        """Parameters of the stem and the four stages."""
        stem = 3 * PATCH**2 * self.dims[0] + 3 * self.dims[0]  # with bias and norm
        halvings = sum(2 * old + 4 * old * new + new for old, new in pairwise(self.dims))  # norm, 2 x 2 convolution
        blocks = sum(depth * _block(width) for depth, width in zip(self.depths, self.dims, strict=True))
        return stem + halvings + blocks

    def flops(self) -> Flops:
        """Forward FLOPs of one tile."""
        sides = [self.image_size // (PATCH << stage) for stage in range(4)]
        weights = 0.0
        for side, depth, width in zip(sides, self.depths, self.dims, strict=True):
            weights += 2.0 * side**2 * depth * (KERNEL**2 * width + 2 * WIDENING * width**2)
        for side, (old, new) in zip(sides[1:], pairwise(self.dims), strict=True):
            weights += 2.0 * side**2 * 4 * old * new
        return Flops(weights=weights, entrance=2.0 * sides[0] ** 2 * 3 * PATCH**2 * self.dims[0])

    def build(self, ctx: BuildContext) -> ConvNeXtModel:
        """The encoder on timm's stages, weights not drawn."""
        from .convnext_model import ConvNeXtModel

        return ConvNeXtModel(self, ctx)


def _block(width: int) -> int:
    """Parameters of one block: depthwise convolution, norm, MLP, layer scale."""
    mlp = 2 * WIDENING * width**2 + WIDENING * width + width
    return (KERNEL**2 + 1) * width + 2 * width + mlp + width
