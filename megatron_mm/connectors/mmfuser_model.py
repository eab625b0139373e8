"""MMFuser's fuser and the MLP behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..contracts import BuildContext, FeatureMap, VisualTokens
from ..maps import MapShape
from .fuser_attention_model import allocated
from .mlp_model import as_tokens, projector_of

if TYPE_CHECKING:
    from .mmfuser import MMFuser


class Fuser(nn.Module):
    """The last of several maps, refined by the others; parameters named as in the published MSCrossAttnBlock."""

    def __init__(self, spec: MMFuser, maps: Sequence[MapShape]) -> None:
        super().__init__()
        attentions, channels = spec.attentions(maps), spec.query(maps).channels
        self.gamma1 = nn.Parameter(torch.empty(channels))
        self.query_norm = nn.LayerNorm(channels, eps=spec.norm_eps)
        self.feat_norm = nn.LayerNorm(channels, eps=spec.norm_eps)  # one for all layers
        self.cross_attn = attentions["cross_attn"].build()
        self.self_attn = attentions["self_attn"].build() if "self_attn" in attentions else None
        if self.self_attn is not None:
            self.norm1 = nn.LayerNorm(channels, eps=spec.norm_eps)
            self.gamma2 = nn.Parameter(torch.empty(channels))

    def forward(self, last: Tensor, others: Tensor) -> Tensor:
        """[n, cells, channels], [n, levels * cells, channels] level after level -> [n, cells, channels]."""
        read = self.cross_attn(self.query_norm(last), self.feat_norm(others))
        if self.self_attn is not None:
            x = self.norm1(read)
            read = read + self.gamma2 * self.self_attn(x, x)
        return last + self.gamma1 * read


class MMFuserModel(MegatronModule):
    """Feature maps of n tiles -> n * rows * columns visual tokens."""

    def __init__(self, spec: MMFuser, ctx: BuildContext, maps: Sequence[MapShape], width: int) -> None:
        projector = projector_of(spec, ctx, spec.query(maps).channels, width)
        super().__init__(config=projector.config)
        with torch.device("meta"):  # where nothing is drawn
            fuser = Fuser(spec, maps)
        self.fuser = allocated(fuser, ctx)
        for name, parameter in self.fuser.named_parameters():
            if name.startswith("gamma"):
                setattr(parameter, "init_constant", 0.0)  # noqa: B010
        self.projector = projector
        self.recompute = ctx.recompute == "full"

    def forward(self, features: list[FeatureMap]) -> VisualTokens:
        """FeatureMaps in the order of `maps` -> VisualTokens with values [n * rows * columns, width]."""
        *others, last = (each.tiles.flatten(1, 2) for each in features)
        inputs = last, torch.cat(others, dim=1)
        fused = checkpoint(self.fuser, *inputs, use_reentrant=False) if self.recompute else self.fuser(*inputs)
        return as_tokens(self.projector(fused.flatten(0, 1)), features[-1])
