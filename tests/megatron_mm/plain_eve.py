"""EVE and EVEv2 as published, one image at a time: nothing of ours computes here.

Patch embedding and patch aligning: EVE (arXiv 2406.11832, section 3.1) as its released code does them. Second weights:
EVEv2 (arXiv 2502.06788, section 3.2), whose released code computes every row in both branches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's


def normalised(image: Tensor) -> Tensor:
    """[3, height, width] in 0..255 as the convolution sees it."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (image / 255 - mean) / std


def read(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Attention of [..., n, channels] over [..., m, channels], as published scaled by the root of all channels."""
    found = []
    for q, k, v in zip(*(x.chunk(heads, -1) for x in (queries, keys, values)), strict=True):
        found.append((q @ k.transpose(-1, -2) * queries.shape[-1] ** -0.5).softmax(-1) @ v)
    return torch.cat(found, -1)


class CrossAttention(nn.Module):
    """What a query reads from its keys, added to the query as it was before its norm."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, channels, bias=False))
        self.kv = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 2 * channels, bias=False))
        self.proj = nn.Linear(channels, channels)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """One [..., 1, channels] over [..., n, channels] -> [..., 1, channels]."""
        k, v = self.kv(keys).chunk(2, -1)
        return query + self.proj(read(self.q(query), k, v, self.heads))


def in_rows(features: Tensor, first: Tensor, end: Tensor) -> Tensor:
    """[rows, columns, channels] -> [1 + rows * (columns + 1), channels]: the class token, each row and its end."""
    rows = [torch.cat([row, end[None]]) for row in features]
    return torch.cat([first[None], *rows])


class PatchEmbedding(nn.Module):
    """EVE's: a convolution, window means that read from their windows, a class token that reads from those, an MLP."""

    def __init__(self, channels: int, width: int, patch: int = 14, pool: int = 2, heads: int = 8) -> None:
        super().__init__()
        self.pool = pool
        self.patch_embedding = nn.Conv2d(3, channels, patch, patch, bias=False)
        self.class_embedding, self.split_embedding = (nn.Parameter(torch.empty(channels)) for _ in range(2))
        self.local_attention, self.global_attention = (CrossAttention(channels, heads) for _ in range(2))
        self.projector = nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, image: Tensor) -> Tensor:
        """[3, height, width] in 0..255 -> [tokens, width]."""
        features = self.patch_embedding(normalised(image)[None])[0]
        windows = features.unfold(1, self.pool, self.pool).unfold(2, self.pool, self.pool)
        patches = windows.flatten(3).permute(1, 2, 3, 0)  # [rows, columns, of a window, channels]
        cells = self.local_attention(patches.mean(2, keepdim=True), patches)[:, :, 0]
        first = self.global_attention(self.class_embedding[None], cells.flatten(0, 1))[0]
        return self.projector(in_rows(cells, first, self.split_embedding))


class PatchEmbeddingV2(nn.Module):
    """EVEv2's: two convolutions that come out at the language model's width."""

    def __init__(self, hidden: int, width: int, patch: int = 16, pool: int = 2) -> None:
        super().__init__()
        first, second = nn.Conv2d(3, hidden, patch, patch), nn.Conv2d(hidden, width, pool, pool)
        self.patch_embedding = nn.Sequential(first, nn.GELU(), second)
        self.class_embedding, self.split_embedding = (nn.Parameter(torch.empty(width)) for _ in range(2))

    def forward(self, image: Tensor) -> Tensor:
        """[3, height, width] in 0..255 -> [tokens, width]."""
        cells = self.patch_embedding(normalised(image)[None])[0]
        return in_rows(cells.permute(1, 2, 0), self.class_embedding, self.split_embedding)


class PatchAligning(nn.Module):
    """EVE's: of all hidden states the tapped ones, and at each place the last of them reads from the others."""

    def __init__(self, hidden: int, width: int, layers: int, every: int = 4, heads: int = 8) -> None:
        super().__init__()
        self.layers, self.heads, taps = layers, heads, sorted(range(layers, -1, -every))
        self.norms = nn.ModuleDict({str(tap): nn.LayerNorm(hidden) for tap in taps})
        self.taps = nn.ModuleDict({str(tap): nn.Linear(hidden, width, bias=False) for tap in taps})
        self.input, self.output = nn.Linear(hidden, width), nn.Linear(width, width)

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """Hidden states [cells, hidden] before each layer and behind the final norm -> [cells, width]."""
        known = {int(tap): self.taps[tap](self.norms[tap](states[int(tap)])) for tap in self.taps}
        query = known.pop(self.layers)[:, None]
        others = torch.stack(list(known.values()), 1)  # [cells, taps, width]
        return self.input(states[-1]) + self.output(read(query, others, others, self.heads)[:, 0])


def in_cells(sequence: Tensor, rows: int, columns: int, pool: int = 1) -> Tensor:
    """An image's [1 + rows * (columns + 1), channels] without class token and ends of rows, averaged pool x pool."""
    grid = sequence[1:].unflatten(0, (rows, columns + 1))[:, :columns]
    return F.avg_pool2d(grid.permute(2, 0, 1), pool).flatten(1).T


def dissimilarity(found: Tensor, wanted: Tensor) -> Tensor:
    """1 - the mean cosine over an image's cells [cells, width]."""
    return 1 - F.cosine_similarity(found, wanted, dim=-1).mean()


class BothBranches(nn.Module):
    """A Qwen2 layer and a second one for visual rows: every row passes both, and the mask takes one of the results."""

    def __init__(self, text: nn.Module, visual: nn.Module) -> None:
        super().__init__()
        self.text, self.visual = text, visual

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], visual: Tensor) -> Tensor:
        """[n, hidden] of one sample, `visual` bool [n, 1]."""
        from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

        normed = self._of("input_layernorm", x, visual)
        size = self.text.self_attn.head_dim
        q, k, v = (
            self._of(f"self_attn.{name}_proj", normed, visual).unflatten(-1, (-1, size)).transpose(0, 1)[None]
            for name in "qkv"
        )
        q, k = apply_rotary_pos_emb(q, k, *rope)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[0].transpose(0, 1).flatten(1)
        x = x + self._of("self_attn.o_proj", seen, visual)
        return x + self._of("mlp", self._of("post_attention_layernorm", x, visual), visual)

    def _of(self, name: str, x: Tensor, visual: Tensor) -> Tensor:
        return torch.where(visual, self.visual.get_submodule(name)(x), self.text.get_submodule(name)(x))


class Teacher(nn.Module):
    """A vision encoder of transformers whose hidden states before the last layer are aligned with. It never learns."""

    def __init__(self, model: nn.Module, side: int, patch: int) -> None:
        super().__init__()
        self.model, self.side, self.patch = model.requires_grad_(False), side, patch

    @torch.no_grad()
    def forward(self, image: Tensor, ratio: int = 1) -> Tensor:
        """uint8 [3, height, width], at most `ratio` times the teacher's side -> [cells, channels]."""
        small = [size // ratio for size in image.shape[1:]]
        resized = F.interpolate(image[None].float(), small, mode="bicubic", antialias=True)[0]
        image = resized.round().clamp(0, 255)  # Pillow's, but for single levels: it rounds between rows and columns too
        (top, bottom), (left, right) = (self._middle(size) for size in image.shape[1:])
        canvas = torch.stack([torch.full((self.side, self.side), float(int(255 * mean))) for mean in MEAN])
        canvas[:, top:bottom, left:right] = image
        states = self.model(normalised(canvas)[None], output_hidden_states=True).hidden_states[-2][0, 1:]
        places = torch.arange(len(states)).view(self.side // self.patch, -1)
        seen = places[top // self.patch : bottom // self.patch, left // self.patch : right // self.patch]
        return states[seen.flatten()]

    def _middle(self, size: int) -> tuple[int, int]:
        """First pixel and end of so many, on whole patches in the middle."""
        start = (self.side - size) // self.patch // 2 * self.patch
        return start, start + size
