"""ConvNeXt on timm's stages; ours are the way in (one pass over the pixels) and the way out."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megavlm.kernels.tile_normalise import tile_normalise
from megavlm.kernels.torchvision import load

from ..contracts import BuildContext, FeatureMap
from .building import without_values
from .convnext import PATCH

if TYPE_CHECKING:
    from .convnext import ConvNeXt


class ConvNeXtModel(nn.Module):
    """Tiles [n, 3, S, S] in 0..255 -> one FeatureMap of n * (S / 32)**2 tokens.

    The parameters have timm's names: "stem. ...", "stages. ...".
    """

    def __init__(self, spec: ConvNeXt, ctx: BuildContext) -> None:
        super().__init__()
        self.spec = spec
        trunk = _trunk(spec, ctx.params_dtype)
        trunk.set_grad_checkpointing(ctx.recompute == "full")  # block by block
        self.stem, self.stages = trunk.stem, trunk.stages
        for stage in self.stages:
            for block in stage.blocks:
                setattr(block.gamma, "init_constant", spec.layer_scale)  # noqa: B010

    def forward(self, tiles: Tensor) -> list[FeatureMap]:
        """uint8 [n, 3, S, S] (float where pixels want a gradient) -> [FeatureMap of [n * rows * columns, channels]]."""
        (shape,) = self.spec.maps
        x = self.stages(self._stemmed(tiles))
        values = x.permute(0, 2, 3, 1).reshape(-1, shape.channels)
        images = torch.arange(len(tiles), device=tiles.device)
        return [FeatureMap(values, shape.grid, images, expert=shape.expert, layer=shape.layer)]

    def _stemmed(self, tiles: Tensor) -> Tensor:
        """uint8 [n, 3, S, S] -> [n, channels, S / 4, S / 4]; the convolution is one matrix product over patches."""
        spec, (patches, norm) = self.spec, self.stem
        side = spec.image_size // PATCH
        pixels = tile_normalise(tiles, PATCH, spec.mean, spec.std, dtype=patches.weight.dtype)
        x = F.linear(pixels, patches.weight.flatten(1), patches.bias)
        return norm(x.unflatten(1, (side, side)).permute(0, 3, 1, 2))


def _trunk(spec: ConvNeXt, dtype: torch.dtype) -> Any:
    """timm's ConvNeXt; of its head not all is empty, and none is used."""
    load()
    from timm.models.convnext import ConvNeXt as Timm

    make = partial(
        Timm,
        depths=spec.depths,
        dims=spec.dims,
        ls_init_value=spec.layer_scale,
        norm_eps=spec.norm_eps,
        num_classes=0,
    )
    return without_values(make, dtype)
