"""DINOv2 on transformers' layers; ours are the way in (one pass over the pixels), the positions' size, the way out."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megavlm.kernels.tile_normalise import tile_normalise
from megavlm.kernels.torchvision import load

from ..contracts import BuildContext, FeatureMap
from .building import without_values
from .positions import resized

if TYPE_CHECKING:
    from .dinov2 import Dinov2


class Dinov2Model(nn.Module):
    """Tiles [n, 3, S, S] in 0..255 -> one FeatureMap of n * rows * columns tokens.

    The parameters have the names of transformers' module, which differ from its published checkpoints' in the
    attention alone: attention.{query,key,value} and output.dense there are {q,k,v}_proj and o_proj here.
    """

    def __init__(self, spec: Dinov2, ctx: BuildContext) -> None:
        super().__init__()
        self.spec, self.recompute = spec, ctx.recompute == "full"
        model = _model(spec, ctx.params_dtype)
        self.embeddings, self.encoder, self.layernorm = model.embeddings, model.encoder, model.layernorm
        for table in self.embeddings.parameters(recurse=False):  # class token, registers, positions
            setattr(table, "init_std", 0.02)  # noqa: B010
        for layer in self.encoder.layer:
            for scale in (layer.layer_scale1.lambda1, layer.layer_scale2.lambda1):
                setattr(scale, "init_constant", spec.layer_scale)  # noqa: B010

    def forward(self, tiles: Tensor) -> list[FeatureMap]:
        """uint8 [n, 3, S, S] (float where pixels want a gradient) -> [FeatureMap of [n * rows * columns, hidden]]."""
        spec, x = self.spec, self._embedded(tiles)
        for layer in self.encoder.layer:
            x = checkpoint(layer, x, use_reentrant=False) if self.recompute else layer(x)
        values = self.layernorm(x[:, spec.first_patch :]).reshape(-1, spec.hidden)
        images = torch.arange(len(tiles), device=tiles.device)
        return [FeatureMap(values, spec.grid, images, expert=spec.name, layer=-1)]

    def _embedded(self, tiles: Tensor) -> Tensor:
        """uint8 [n, 3, S, S] -> [n, tokens, hidden]: class token, registers, which have no position, patches."""
        spec, embeddings = self.spec, self.embeddings
        convolution = embeddings.patch_embeddings.projection
        pixels = tile_normalise(tiles, spec.patch_size, spec.mean, spec.std, dtype=convolution.weight.dtype)
        patches = F.linear(pixels, convolution.weight.flatten(1), convolution.bias)
        positions = resized(embeddings.position_embeddings[0], spec.table, spec.grid, antialias=True)
        before = torch.cat([embeddings.cls_token + positions[:1], embeddings.register_tokens], dim=1)
        return torch.cat([before.expand(len(tiles), -1, -1), patches + positions[1:]], dim=1)


def _model(spec: Dinov2, dtype: torch.dtype) -> Any:
    """transformers' model, but for the mask token."""
    load()
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    config = Dinov2WithRegistersConfig(
        hidden_size=spec.hidden,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        mlp_ratio=spec.ffn // spec.hidden,
        image_size=spec.trained_size,
        patch_size=spec.patch_size,
        layer_norm_eps=spec.norm_eps,
        num_register_tokens=spec.registers,
    )
    config._attn_implementation = "sdpa"
    model = without_values(partial(Dinov2WithRegistersModel, config), dtype)
    del model.embeddings.mask_token
    return model
