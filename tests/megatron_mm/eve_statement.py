"""EVE's and EVEv2's embeddings as published, one image after another: nn.Conv2d, avg_pool2d, unfold, and loops.

What the tests of the encoders and of the connector hold the batched modules against.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from megavlm.megatron_mm.tiles import VariedTiles

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HEADS = 8
Weights = dict[str, Tensor]


def eve_shapes(channels: int, patch: int, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Encoder and connector of EVE, in the published layout."""
    attention = {
        "q.0.weight": (channels,), "q.0.bias": (channels,), "q.1.weight": (channels, channels),
        "kv.0.weight": (channels,), "kv.0.bias": (channels,), "kv.1.weight": (2 * channels, channels),
        "proj.weight": (channels, channels), "proj.bias": (channels,),
    }  # fmt: skip
    return {
        "encoder.patch_embedding.weight": (channels, 3, patch, patch),
        **{f"encoder.local_attention.{name}": shape for name, shape in attention.items()},
        "connector.class_embedding": (channels,),
        "connector.split_embedding": (channels,),
        **{f"connector.global_attention.{name}": shape for name, shape in attention.items()},
        "connector.projector.0.weight": (hidden, channels),
        "connector.projector.0.bias": (hidden,),
        "connector.projector.2.weight": (width, hidden),
        "connector.projector.2.bias": (width,),
    }


def drawn(shapes: dict[str, tuple[int, ...]]) -> Weights:
    """Random weights whose outputs are of the order of one."""
    draw = torch.Generator().manual_seed(3)
    found = {}
    for name, shape in shapes.items():
        fan_in = torch.Size(shape[1:]).numel() if len(shape) > 1 else 4
        found[name] = torch.randn(shape, generator=draw) / fan_in**0.5
    return found


def part(weights: Weights, prefix: str) -> Weights:
    """Those whose names begin so, without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def images(sizes: list[tuple[int, int]], seed: int = 0) -> VariedTiles:
    """Noise of these heights and widths."""
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (sum(3 * h * w for h, w in sizes),), generator=draw, dtype=torch.uint8)
    return VariedTiles(pixels, tuple(sizes))


def normalised(tile: Tensor) -> Tensor:
    """Bytes [3, h, w] -> [1, 3, h, w], as CLIP's processor."""
    mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
    return ((tile.float() / 255 - mean) / std)[None]


def attended(w: Weights, query: Tensor, seen: Tensor, heads: int = HEADS) -> Tensor:
    """One query [channels] and what it sees [k, channels]: keys and values made, head by head."""
    channels = len(query)
    q = F.layer_norm(query, (channels,), w["q.0.weight"], w["q.0.bias"]) @ w["q.1.weight"].T
    kv = F.layer_norm(seen, (channels,), w["kv.0.weight"], w["kv.0.bias"]) @ w["kv.1.weight"].T
    keys, values = kv[:, :channels], kv[:, channels:]
    found, each = [], channels // heads
    for head in range(heads):
        one = slice(head * each, (head + 1) * each)
        scores = (keys[:, one] @ q[one]) * channels**-0.5
        found.append(scores.softmax(0) @ values[:, one])
    return query + torch.cat(found) @ w["proj.weight"].T + w["proj.bias"]


def eve_map(w: Weights, tile: Tensor, pool: int = 2) -> Tensor:
    """The encoder's: bytes [3, h, w] -> [rows, columns, channels]."""
    kernel = w["patch_embedding.weight"]
    embedded = F.conv2d(normalised(tile), kernel, stride=kernel.shape[-1])
    pooled = F.avg_pool2d(embedded, pool, pool)[0]
    channels, rows, columns = pooled.shape
    windows = F.unfold(embedded, pool, stride=pool).view(channels, pool * pool, rows * columns)
    cells = pooled.flatten(1).T
    attention = part(w, "local_attention.")
    if attention:
        cells = torch.stack([attended(attention, cells[i], windows[:, :, i].T) for i in range(rows * columns)])
    return cells.view(rows, columns, channels)


def eve_v2_map(w: Weights, tile: Tensor) -> Tensor:
    """The second version's: bytes [3, h, w] -> [rows, columns, channels]."""
    first, second = w["patch_embedding.0.weight"], w["patch_embedding.2.weight"]
    x = F.gelu(F.conv2d(normalised(tile), first, w["patch_embedding.0.bias"], stride=first.shape[-1]))
    return F.conv2d(x, second, w["patch_embedding.2.bias"], stride=second.shape[-1])[0].permute(1, 2, 0)


def rows_of_tokens(w: Weights, cells: Tensor) -> Tensor:
    """The connector's: [rows, columns, channels] -> [class, row 0, end, row 1, end, ...], through the MLP if any."""
    attention = part(w, "global_attention.")
    first = w["class_embedding"]
    if attention:
        first = attended(attention, first, cells.flatten(0, 1))
    tokens = [first]
    for row in cells:
        tokens += [*row, w["split_embedding"]]
    x = torch.stack(tokens)
    if "projector.0.weight" not in w:
        return x
    x = F.gelu(x @ w["projector.0.weight"].T + w["projector.0.bias"])
    return x @ w["projector.2.weight"].T + w["projector.2.bias"]
