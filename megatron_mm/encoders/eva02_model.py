"""EVA-02's blocks under their published names; ours since timm's EVA knows no windows and names its weights otherwise.

Follows the published det/detectron2/modeling/backbone/vit.py: x += attn(norm1(x)), x += mlp(norm2(x)), no final norm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megavlm.kernels.tile_normalise import tile_normalise
from megavlm.kernels.torchvision import load

from ..contracts import BuildContext, FeatureMap
from .positions import resized

if TYPE_CHECKING:
    from .eva02 import Eva02

Rotation = tuple[Tensor, Tensor]  # sine and cosine, float32 [tokens, channels of a head]


class Attention(nn.Module):
    """Self-attention with rotary positions; queries and values have a bias, keys have none."""

    def __init__(self, spec: Eva02) -> None:
        super().__init__()
        self.heads = spec.heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(spec.hidden, spec.hidden, bias=False) for _ in range(3))
        self.q_bias = nn.Parameter(torch.empty(spec.hidden))
        self.v_bias = nn.Parameter(torch.empty(spec.hidden))
        self.proj = nn.Linear(spec.hidden, spec.hidden)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """[n, tokens, hidden] -> the same."""
        from timm.layers import apply_rot_embed

        q = self._heads(F.linear(x, self.q_proj.weight, self.q_bias))
        k = self._heads(self.k_proj(x))
        v = self._heads(F.linear(x, self.v_proj.weight, self.v_bias))
        q, k = (apply_rot_embed(each, *rotation) for each in (q, k))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """[n, tokens, hidden] -> [n, heads, tokens, channels of a head]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class SwiGLU(nn.Module):
    """w3(LayerNorm(SiLU(w1 x) * w2 x))."""

    def __init__(self, spec: Eva02) -> None:
        super().__init__()
        self.w1 = nn.Linear(spec.hidden, spec.ffn)
        self.w2 = nn.Linear(spec.hidden, spec.ffn)
        self.ffn_ln = nn.LayerNorm(spec.ffn, eps=spec.norm_eps)
        self.w3 = nn.Linear(spec.ffn, spec.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> the same."""
        return self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))


class Block(nn.Module):
    """One block, over windows of `window` patches a side or, where that is None, over the whole tile."""

    def __init__(self, spec: Eva02, window: int | None) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(spec.hidden, eps=spec.norm_eps)
        self.attn = Attention(spec)
        self.norm2 = nn.LayerNorm(spec.hidden, eps=spec.norm_eps)
        self.mlp = SwiGLU(spec)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """[n, rows, columns, hidden] -> the same."""
        x = x + self._attended(self.norm1(x), rotation)
        return x + self.mlp(self.norm2(x))

    def _attended(self, x: Tensor, rotation: Rotation) -> Tensor:
        n, rows, columns, width = x.shape
        down, across = self.window or rows, self.window or columns
        windows = x.view(n, rows // down, down, columns // across, across, width).transpose(2, 3)
        out = self.attn(windows.reshape(-1, down * across, width), rotation)
        return out.view(windows.shape).transpose(2, 3).reshape(x.shape)


class PatchEmbedding(nn.Module):
    """Normalised pixels and a convolution over patches, which is one matrix product."""

    def __init__(self, spec: Eva02) -> None:
        super().__init__()
        self.spec = spec
        self.proj = nn.Conv2d(3, spec.hidden, spec.patch_size, spec.patch_size)

    def forward(self, tiles: Tensor) -> Tensor:
        """uint8 [n, 3, S, S] -> [n, rows * columns, hidden]."""
        spec, weight = self.spec, self.proj.weight
        pixels = tile_normalise(tiles, spec.patch_size, spec.mean, spec.std, dtype=weight.dtype)
        return F.linear(pixels, weight.flatten(1), self.proj.bias)


class Eva02Model(nn.Module):
    """Tiles [n, 3, S, S] in 0..255 -> one FeatureMap of n * rows * columns tokens."""

    def __init__(self, spec: Eva02, ctx: BuildContext) -> None:
        super().__init__()
        self.spec, self.recompute = spec, ctx.recompute == "full"
        with torch.device("meta"):  # where torch draws no weights
            positions = spec.table[0] * spec.table[1] + 1  # the class token's first
            self.pos_embed = nn.Parameter(torch.empty(1, positions, spec.hidden))
            self.patch_embed = PatchEmbedding(spec)
            windows = [None if spec.sees_all(i) else spec.window for i in range(spec.layers)]
            self.blocks = nn.ModuleList(Block(spec, window) for window in windows)
        self.to(ctx.params_dtype).to_empty(device=torch.get_default_device())
        setattr(self.pos_embed, "init_std", 0.02)  # noqa: B010

    def forward(self, tiles: Tensor) -> list[FeatureMap]:
        """uint8 [n, 3, S, S] (float where pixels want a gradient) -> [FeatureMap of [n * rows * columns, hidden]]."""
        spec = self.spec
        x = self.patch_embed(tiles) + resized(self.pos_embed[0, 1:], spec.table, spec.grid)
        x = x.unflatten(1, spec.grid)
        windowed, whole = (self._rotation(side, tiles.device) for side in (spec.window, spec.grid[0]))
        for i, block in enumerate(self.blocks):
            rotation = whole if spec.sees_all(i) else windowed
            x = checkpoint(block, x, rotation, use_reentrant=False) if self.recompute else block(x, rotation)
        images = torch.arange(len(tiles), device=tiles.device)
        return [FeatureMap(x.reshape(-1, spec.hidden), spec.grid, images, expert=spec.name, layer=-1)]

    def _rotation(self, side: int, device: torch.device) -> Rotation:
        """For `side` x `side` patches, whose positions are spread over 0..rope_side.

        No buffer: it would follow the weights to bfloat16, and costs nothing beside the blocks.
        """
        load()
        from timm.layers import build_rotary_pos_embed

        spec, trained = self.spec, [self.spec.rope_side] * 2
        return build_rotary_pos_embed(
            [side, side], dim=spec.head_dim, in_pixels=False, ref_feat_shape=trained, device=device
        )
