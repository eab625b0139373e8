"""EVE's patch embedding, all tiles at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ..contracts import BuildContext
from ..query_attention import QueryAttention
from .patches_model import PatchEmbeddingModel

if TYPE_CHECKING:
    from .eve import Eve


class EveModel(PatchEmbeddingModel):
    """Tiles -> one FeatureMap. The parameters have the published names: patch_embedding, local_attention."""

    def __init__(self, spec: Eve, ctx: BuildContext) -> None:
        super().__init__(spec, ctx)
        place = {"device": torch.get_default_device(), "dtype": ctx.params_dtype}
        self.patch_embedding = skip_init(
            nn.Conv2d, 3, spec.channels, kernel_size=spec.patch_size, stride=spec.patch_size, bias=False, **place
        )
        self.local_attention = QueryAttention(ctx, spec.channels, spec.heads) if spec.window_attention else None

    def embedded(self, patches: Tensor) -> Tensor:
        """As PatchEmbeddingModel's; the convolution's patches don't overlap, so it is one matrix product."""
        x = F.linear(patches, self.patch_embedding.weight.flatten(1))
        pooled = x.mean(1)
        return pooled if self.local_attention is None else self.local_attention(pooled, x)
