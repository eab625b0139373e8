"""Eagle's experts as published: classes of transformers and timm, and what Eagle's released code does around them.

Each is a module from tiles, float [n, 3, S, S] in 0..255, to a map [n, channels, rows, columns].
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

RENAMED = {  # where timm's names are not those of the published checkpoints
    "eva02": {
        "attn.q_proj.bias": "attn.q_bias", "attn.v_proj.bias": "attn.v_bias", "mlp.fc1_g": "mlp.w1",
        "mlp.fc1_x": "mlp.w2", "mlp.norm": "mlp.ffn_ln", "mlp.fc2": "mlp.w3",
    }
}  # fmt: skip


def normalised(tiles: Tensor, spec: Any) -> Tensor:
    """Float [n, 3, S, S] in 0..255 as the expert sees it: normalised, then resized, in the released order."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    return F.interpolate((tiles / 255 - mean) / std, (spec.image_size,) * 2, mode="bilinear", align_corners=True)


def as_image(x: Tensor) -> Tensor:
    """[n, cells, channels] of a square grid -> [n, channels, rows, columns]."""
    return x.transpose(1, 2).unflatten(2, (int(x.shape[1] ** 0.5), -1))


def clip(spec: Any) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=spec.hidden, intermediate_size=spec.ffn, num_hidden_layers=spec.layers, hidden_act="quick_gelu",
            num_attention_heads=spec.heads, image_size=spec.image_size, patch_size=spec.patch_size,
            layer_norm_eps=spec.norm_eps,
        )
    )  # fmt: skip


class Clip(nn.Module):
    """Eagle's: the last layer's patches, without the norm after it; the class token goes before the layers."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.spec, self.vision_model = spec, clip(spec)

    def forward(self, tiles: Tensor) -> Tensor:
        model = self.vision_model
        x = model.embeddings(normalised(tiles, self.spec))[:, 1:]
        return as_image(model.encoder(inputs_embeds=model.pre_layrnorm(x)).last_hidden_state)


class ConvNeXt(nn.Module):
    """timm's features before its head."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        from timm.models.convnext import ConvNeXt as Timm

        self.spec = spec
        self.net = Timm(depths=spec.depths, dims=spec.dims, ls_init_value=1.0, norm_eps=spec.norm_eps, num_classes=0)

    def forward(self, tiles: Tensor) -> Tensor:
        return self.net.forward_features(normalised(tiles, self.spec))


class ShortNeck(nn.Module):
    """Eagle's, in place of the published neck: the norm is over channels."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(spec.hidden, spec.neck_channels, 1, bias=False)
        self.layer_norm1 = nn.LayerNorm(spec.neck_channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer_norm1(self.conv1(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Sam(nn.Module):
    """Four cells of the map become the channels of one."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        from transformers import SamVisionConfig
        from transformers.models.sam.modeling_sam import SamVisionEncoder

        self.spec = spec
        self.net = SamVisionEncoder(
            SamVisionConfig(
                hidden_size=spec.hidden, num_hidden_layers=spec.layers, num_attention_heads=spec.heads,
                mlp_dim=spec.ffn, image_size=spec.image_size, patch_size=spec.patch_size,
                layer_norm_eps=spec.norm_eps, window_size=spec.window, global_attn_indexes=list(spec.global_layers),
            )
        )  # fmt: skip
        self.net.neck = ShortNeck(spec)

    def forward(self, tiles: Tensor) -> Tensor:
        return F.pixel_unshuffle(self.net(normalised(tiles, self.spec)).last_hidden_state, 2)


class Eva02(nn.Module):
    """timm's blocks, some on windows that are cut out one by one."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        from timm.layers import RotaryEmbeddingCat
        from timm.models.eva import EvaBlock

        self.spec = spec
        self.pos_embed = nn.Parameter(torch.empty(1, (spec.trained_size // spec.patch_size) ** 2 + 1, spec.hidden))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, spec.hidden, spec.patch_size, spec.patch_size)})
        shape = {"num_heads": spec.heads, "mlp_ratio": (spec.ffn + 0.5) / spec.hidden, "num_prefix_tokens": 0}
        kind = {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True}
        norm = partial(nn.LayerNorm, eps=spec.norm_eps)
        self.blocks = nn.ModuleList(EvaBlock(spec.hidden, **shape, **kind, norm_layer=norm) for _ in range(spec.layers))
        self.side = spec.image_size // spec.patch_size
        turn = partial(RotaryEmbeddingCat, spec.hidden // spec.heads, in_pixels=False)
        self.turns = {
            side: turn(feat_shape=[side] * 2, ref_feat_shape=[spec.rope_side] * 2).get_embed()
            for side in (spec.window, self.side)
        }

    def forward(self, tiles: Tensor) -> Tensor:
        x = self.patch_embed["proj"](normalised(tiles, self.spec))
        table = as_image(self.pos_embed[:, 1:])
        x = x + F.interpolate(table, x.shape[2:], mode="bicubic", align_corners=False)
        for number, block in enumerate(self.blocks, start=1):
            side = self.spec.window if number % self.spec.global_every else self.side
            windows = range(0, self.side, side)
            rows = [[self._block(block, x[:, :, r : r + side, c : c + side]) for c in windows] for r in windows]
            x = torch.cat([torch.cat(row, 3) for row in rows], 2)
        return x

    def _block(self, block: nn.Module, window: Tensor) -> Tensor:
        return as_image(block(window.flatten(2).transpose(1, 2), rope=self.turns[window.shape[2]]))


class Pix2Struct(nn.Module):
    """transformers' model on what its NumPy processor makes of a tile, padded patches masked."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        from transformers import Pix2StructVisionConfig, Pix2StructVisionModel
        from transformers.models.pix2struct.image_processing_pil_pix2struct import Pix2StructImageProcessorPil

        sides = {"height": spec.patch_size, "width": spec.patch_size}
        self.processor = Pix2StructImageProcessorPil(patch_size=sides, max_patches=spec.max_patches)
        self.net = Pix2StructVisionModel(
            Pix2StructVisionConfig(
                hidden_size=spec.hidden, patch_embed_hidden_size=3 * spec.patch_size**2, d_ff=spec.ffn,
                d_kv=spec.hidden // spec.heads, num_hidden_layers=spec.layers, num_attention_heads=spec.heads,
                layer_norm_eps=spec.norm_eps, seq_len=spec.positions,
            )
        )  # fmt: skip

    def forward(self, tiles: Tensor) -> Tensor:
        images = [np.ascontiguousarray(tile.byte().permute(1, 2, 0).numpy()) for tile in tiles]
        inputs = self.processor(images, return_tensors="pt")
        real = int(inputs["attention_mask"][0].sum())
        return as_image(self.net(**inputs).last_hidden_state[:, :real])


EXPERTS = {"clip": Clip, "convnext": ConvNeXt, "sam": Sam, "eva02": Eva02, "pix2struct": Pix2Struct}
