"""SAM's encoder on transformers' layers; ours are the way in (one pass over the pixels) and the way out."""

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

if TYPE_CHECKING:
    from .sam import Sam


class SamModel(nn.Module):
    """Tiles [n, 3, S, S] in 0..255 -> one FeatureMap.

    The parameters have the published names, those of `vision_encoder` alone: "pos_embed", "patch_embed. ...",
    "layers. ...", "neck. ...".
    """

    def __init__(self, spec: Sam, ctx: BuildContext) -> None:
        super().__init__()
        self.spec, self.recompute = spec, ctx.recompute == "full"
        encoder = _encoder(spec, ctx.params_dtype)
        self.pos_embed, self.patch_embed = encoder.pos_embed, encoder.patch_embed
        self.layers, self.neck = encoder.layers, encoder.neck
        setattr(self.pos_embed, "init_std", 0.02)  # noqa: B010
        for layer in self.layers:
            layer.attn.get_rel_pos = _relative
            for table in (layer.attn.rel_pos_h, layer.attn.rel_pos_w):
                setattr(table, "init_constant", 0.0)  # noqa: B010

    def forward(self, tiles: Tensor) -> list[FeatureMap]:
        """uint8 [n, 3, S, S] (float where pixels want a gradient) -> [FeatureMap of [n * rows * columns, channels]]."""
        (shape,) = self.spec.maps
        x = self._embedded(tiles)
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.recompute else layer(x)
        x = F.pixel_unshuffle(self._necked(x), self.spec.unshuffle)
        values = x.permute(0, 2, 3, 1).reshape(-1, shape.channels)
        images = torch.arange(len(tiles), device=tiles.device)
        return [FeatureMap(values, shape.grid, images, expert=shape.expert, layer=shape.layer)]

    def _embedded(self, tiles: Tensor) -> Tensor:
        """uint8 [n, 3, S, S] -> [n, rows, columns, hidden]; the convolution is one matrix product over patches."""
        spec, convolution = self.spec, self.patch_embed.projection
        pixels = tile_normalise(tiles, spec.patch_size, spec.mean, spec.std, dtype=convolution.weight.dtype)
        x = F.linear(pixels, convolution.weight.flatten(1), convolution.bias)
        return x.unflatten(1, (spec.side, spec.side)) + self.pos_embed

    def _necked(self, x: Tensor) -> Tensor:
        """[n, rows, columns, hidden] -> [n, neck_channels, rows, columns]."""
        if self.spec.neck == "published":
            return self.neck(x)
        return self.neck.layer_norm1(self.neck.conv1(x.permute(0, 3, 1, 2)))


def _relative(queries: int, keys: int, table: Tensor) -> Tensor:
    """transformers' get_rel_pos where the table fits, as here always: [queries, keys, head width].

    Theirs resizes the table first, to the size it has, and torch's interpolation has no deterministic backward pass on
    a GPU.
    """
    down, across = torch.arange(queries, device=table.device), torch.arange(keys, device=table.device)
    return table[down[:, None] - across + keys - 1]


def _encoder(spec: Sam, dtype: torch.dtype) -> Any:
    """transformers' vision encoder, with as much of its neck as is wanted."""
    load()
    from transformers import SamVisionConfig
    from transformers.models.sam.modeling_sam import SamVisionEncoder

    config = SamVisionConfig(
        hidden_size=spec.hidden,
        output_channels=spec.neck_channels,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        image_size=spec.image_size,
        patch_size=spec.patch_size,
        layer_norm_eps=spec.norm_eps,
        window_size=spec.window,
        global_attn_indexes=spec.global_layers,
        mlp_dim=spec.ffn,
    )
    config._attn_implementation = "sdpa"
    encoder = without_values(partial(SamVisionEncoder, config), dtype)
    if spec.neck == "short":
        del encoder.neck.conv2, encoder.neck.layer_norm2
    return encoder
