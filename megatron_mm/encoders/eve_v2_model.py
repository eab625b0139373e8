"""EVEv2's patch embedding, all tiles at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ..contracts import BuildContext
from .patches_model import PatchEmbeddingModel

if TYPE_CHECKING:
    from .eve_v2 import EveV2


class EveV2Model(PatchEmbeddingModel):
    """Tiles -> one FeatureMap. The parameters have the published names: patch_embedding.0 and .2."""

    def __init__(self, spec: EveV2, ctx: BuildContext) -> None:
        super().__init__(spec, ctx)
        self.patch_embedding: Any = nn.Sequential(
            _convolution(ctx, 3, spec.hidden, spec.patch_size),
            nn.GELU(),
            _convolution(ctx, spec.hidden, spec.channels, spec.pool),
        )

    def embedded(self, patches: Tensor) -> Tensor:
        """As PatchEmbeddingModel's; neither convolution overlaps, so each is one matrix product."""
        first, gelu, second = self.patch_embedding
        x = gelu(F.linear(patches, first.weight.flatten(1), first.bias))
        # A cell is [patch, channel] here: the weight is brought into that order, since it is smaller than a batch.
        return F.linear(x.flatten(1), second.weight.permute(0, 2, 3, 1).flatten(1), second.bias)


def _convolution(ctx: BuildContext, channels: int, out: int, side: int) -> Any:
    place = {"device": torch.get_default_device(), "dtype": ctx.params_dtype}
    return skip_init(nn.Conv2d, channels, out, kernel_size=side, stride=side, **place)
