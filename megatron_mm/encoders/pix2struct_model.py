"""Pix2Struct's encoder on transformers' layers; ours is the way in: no padded patches, so no attention mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megavlm.kernels.torchvision import load

from ..contracts import BuildContext, FeatureMap
from .pix2struct_patches import flattened_patches

if TYPE_CHECKING:
    from .pix2struct import Pix2Struct


class Pix2StructModel(nn.Module):
    """Tiles [n, 3, S, S] in 0..255 -> one FeatureMap of n * rows * columns tokens.

    The parameters have the names of the published checkpoint's encoder ("embeddings. ...", "encoder.layer. ...").
    """

    def __init__(self, spec: Pix2Struct, ctx: BuildContext) -> None:
        super().__init__()
        self.spec, self.recompute = spec, ctx.recompute == "full"
        model = _layers(spec).to(ctx.params_dtype).to_empty(device=torch.get_default_device())
        self.embeddings, self.encoder, self.layernorm = model.embeddings, model.encoder, model.layernorm
        for table in (self.embeddings.row_embedder, self.embeddings.column_embedder):
            setattr(table.weight, "init_std", 0.02)  # noqa: B010

    def forward(self, tiles: Tensor) -> list[FeatureMap]:
        """uint8 [n, 3, S, S] (float where pixels want a gradient) -> [FeatureMap of [n * rows * columns, hidden]]."""
        x = self._embedded(tiles)
        for layer in self.encoder.layer:
            x, _ = checkpoint(layer, x, use_reentrant=False) if self.recompute else layer(x)
        values = self.layernorm(x).reshape(-1, self.spec.hidden)
        images = torch.arange(len(tiles), device=tiles.device)
        return [FeatureMap(values, self.spec.grid, images, expert=self.spec.name, layer=-1)]

    def _embedded(self, tiles: Tensor) -> Tensor:
        """uint8 [n, 3, S, S] -> [n, rows * columns, hidden]; rows and columns count from 1, since 0 is padding."""
        spec, embeddings = self.spec, self.embeddings
        rows, columns = spec.grid
        patches = flattened_patches(tiles, spec.patch_size, spec.grid, embeddings.patch_projection.weight.dtype)
        down = embeddings.row_embedder.weight[1 : rows + 1, None]
        across = embeddings.column_embedder.weight[None, 1 : columns + 1]
        return embeddings.patch_projection(patches) + (down + across).flatten(0, 1)


def _layers(spec: Pix2Struct) -> Any:
    """transformers' vision model on the meta device, where it draws no weights."""
    load()
    import transformers

    kind: Any = transformers.Pix2StructVisionConfig  # whose signature leaves out the last key
    config = kind(
        hidden_size=spec.hidden,
        patch_embed_hidden_size=3 * spec.patch_size**2,
        d_ff=spec.ffn,
        d_kv=spec.hidden // spec.heads,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        layer_norm_eps=spec.norm_eps,
        seq_len=spec.positions,
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        return transformers.Pix2StructVisionModel(config)
