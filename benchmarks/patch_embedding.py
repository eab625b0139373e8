"""`python benchmarks/patch_embedding.py`: EVE's patch embedding, all images of a batch at once against one by one.

Encoder `eve` and connector `image_rows`, forward and backward, on images of many shapes. "One by one" is a loop over
the images through the same modules. "As published" is the loop of the released EVE: convolution, average pooling,
unfold, and keys and values of every patch; the MLP once for all images, and pixels normalised beforehand, which is not
counted. Times are this process' CPU time, and the contestants take turns, so that other work on the machine disturbs
them alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megavlm.kernels.tile_normalise import tile_normalise
from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.connectors.image_rows import ImageRows
from megavlm.megatron_mm.encoders.eve import Eve
from megavlm.megatron_mm.query_attention import QueryAttention
from megavlm.megatron_mm.tiles import VariedTiles
from megavlm.platform.images.longer_side import LongerSide


class Shape(NamedTuple):
    """Of the embedding, and of the batch it is given."""

    side: int
    patch: int
    channels: int
    width: int
    images: int


SHAPES = {
    "mini": Shape(side=56, patch=4, channels=64, width=128, images=16),
    "published width, 336 px": Shape(side=336, patch=14, channels=1024, width=4096, images=8),
}


class Embedding(nn.Module):
    """Encoder and connector, three ways."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        spec = Eve.parse({"image_size": shape.side, "patch_size": shape.patch, "channels": shape.channels})
        ctx = backend.build_context(Parallel())
        self.encoder = spec.build(ctx)
        self.connector = ImageRows().build(ctx, spec.maps, shape.width)
        draw = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            parameter.data.normal_(0, parameter.shape[-1] ** -0.5, generator=draw)

    def at_once(self, tiles: VariedTiles) -> Tensor:
        """Tokens of all images."""
        return self.connector(self.encoder(tiles)).values

    def one_by_one(self, tiles: VariedTiles) -> Tensor:
        """The same modules, an image at a time."""
        return torch.cat([self.at_once(tiles[i : i + 1]) for i in range(len(tiles))])

    def as_published(self, images: list[Tensor]) -> Tensor:
        """Normalised images [1, 3, h, w]; the MLP once for all of them."""
        return self.connector.projector(torch.cat([self._published(image) for image in images]))

    def _published(self, image: Tensor) -> Tensor:
        local, whole = self.encoder.local_attention, self.connector.global_attention
        weight, pool = self.encoder.patch_embedding.weight, self.encoder.spec.pool
        patches = F.conv2d(image, weight, stride=weight.shape[-1])
        pooled = F.avg_pool2d(patches, pool)
        channels, rows, columns = pooled.shape[1:]
        windows = F.unfold(patches, pool, stride=pool).view(channels, pool * pool, rows * columns).permute(2, 1, 0)
        cells = _attended(local, pooled[0].flatten(1).T, windows)
        first = _attended(whole, self.connector.class_embedding[None], cells[None])
        ends = self.connector.split_embedding.expand(rows, 1, -1)
        return torch.cat([first, torch.cat([cells.view(rows, columns, channels), ends], dim=1).flatten(0, 1)])


def _attended(attention: QueryAttention, query: Tensor, seen: Tensor) -> Tensor:
    """Queries [n, channels], [n, k, channels]; keys and values made."""
    q = attention.q(query).unflatten(-1, (attention.heads, -1))
    keys, values = attention.kv(seen).unflatten(-1, (2, attention.heads, -1)).unbind(2)
    weights = (torch.einsum("nhd,nkhd->nhk", q, keys) * attention.scale).softmax(-1)
    return query + attention.proj(torch.einsum("nhk,nkhd->nhd", weights, values).flatten(1))


def batch(shape: Shape) -> VariedTiles:
    """Images of random shapes, from 1:3 to 3:1, brought to the longer side."""
    draw = np.random.default_rng(1)
    tiling = LongerSide(tile=shape.side, side_step=2 * shape.patch)
    ratios = 3 ** draw.uniform(-1, 1, shape.images)
    sizes = tuple(tiling.size(tiling.plan(round(1000 * ratio), 1000)) for ratio in ratios)
    pixels = draw.integers(0, 256, sum(3 * height * width for height, width in sizes), np.uint8)
    return VariedTiles(torch.from_numpy(pixels), sizes)


def ways(shape: Shape) -> tuple[Embedding, dict[str, Callable[[], Tensor]]]:
    """The embedding, and the three ways through it for one batch."""
    model, tiles = Embedding(shape), batch(shape)
    spec = model.encoder.spec
    flat = [tile_normalise(tile[None], 1, spec.mean, spec.std) for tile in tiles.each()]
    images = [pixels.transpose(1, 2).view(1, 3, *size) for pixels, size in zip(flat, tiles.sizes, strict=True)]
    return model, {
        "all at once": lambda: model.at_once(tiles),
        "one by one": lambda: model.one_by_one(tiles),
        "as published": lambda: model.as_published(images),
    }


def measured(model: Embedding, contestants: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds of forward and backward in each round; one more before them is not counted."""
    took: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, call in contestants.items():
            model.zero_grad()
            started = time.process_time()
            values = call()
            values.backward(torch.ones_like(values))
            took[name].append((time.process_time() - started) * 1000)
    return {name: each[1:] for name, each in took.items()}


def differences(model: Embedding, contestants: dict[str, Callable[[], Tensor]]) -> float:
    """The largest difference of a token or of a gradient, over the largest such value, between the ways."""
    found = []
    for call in contestants.values():
        model.zero_grad()
        values = call()
        values.square().mean().backward()
        found.append([values.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    first, *others = found
    pairs = [pair for other in others for pair in zip(first, other, strict=True)]
    return max(float((one - two).abs().max() / one.abs().max()) for one, two in pairs)


def main() -> None:
    """Print times and ratios: medians, minima, and the worst ratio of the rounds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    backend.init_distributed(Parallel(), seed=1)
    for title, shape in SHAPES.items():
        model, contestants = ways(shape)
        took = measured(model, contestants, args.rounds if shape.channels > 64 else 10 * args.rounds)
        print(f"{title}: {shape}; largest relative difference {differences(model, contestants):.1e}")
        for name, each in took.items():
            ratios = [other / ours for other, ours in zip(each, took["all at once"], strict=True)]
            print(f"  {name:13s} median {statistics.median(each):8.2f} ms, minimum {min(each):8.2f}, "
                  f"{statistics.median(ratios):.2f} x ours ({min(ratios):.2f} to {max(ratios):.2f})")  # fmt: skip
    backend.shutdown()


if __name__ == "__main__":
    main()
