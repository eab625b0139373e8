"""Samples with images of many shapes, for a loop that takes them one by one, and the same in one packed sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from megavlm.megatron_mm.config import ModelConfig
from megavlm.megatron_mm.contracts import PackedBatch
from megavlm.megatron_mm.tiles import VariedTiles

# Of a step, turn about, each a global batch of two packs: width and height of each sample's images. Of any size, as
# photographs are: the tiling makes small ones large. One image, two of different shapes, none; one that is a line.
SHAPES: list[list[list[list[tuple[int, int]]]]] = [
    [[[(640, 480)], [], [(90, 200), (31, 30)]], [[(1200, 30)], [(300, 300)]]],
    [[[], [(7, 280)]], [[]]],
]
WORDS = 11  # of the shortest sample, beside its images


class Sample(NamedTuple):
    """One conversation: words, and images between them."""

    tokens: Tensor  # int64 [n]; any id stands where visual tokens will
    labels: Tensor  # int64 [n], already the next token; -100 where nothing is learnt
    images: list[Tensor]  # uint8 [3, height, width] each, as the tiling made them
    places: list[range]  # where each one's visual tokens stand


def global_batches(config: ModelConfig, steps: int) -> list[list[list[Sample]]]:
    """For each step the packs, of as many tokens each, as lists of samples: two batches turn about, to be learnt."""
    length = max(sum(len(_drawn(0, 0, shapes, config).tokens) for shapes in pack) for pack in sum(SHAPES, []))
    pair = [
        [_filled(10 * number + k, shapes, length + WORDS, config) for k, shapes in enumerate(packs)]
        for number, packs in enumerate(SHAPES)
    ]
    return [pair[step % 2] for step in range(steps)]


def _filled(seed: int, pack: list[list[tuple[int, int]]], length: int, config: ModelConfig) -> list[Sample]:
    """The samples of a pack; the last one has words until the pack is full."""
    made = [_drawn(seed, 3 * k, shapes, config) for k, shapes in enumerate(pack)]
    left = length - sum(len(sample.tokens) for sample in made)
    return [*made[:-1], _drawn(seed, 3 * (len(pack) - 1) + left, pack[-1], config)]


def _drawn(seed: int, more: int, shapes: list[tuple[int, int]], config: ModelConfig) -> Sample:
    draw, images, places, length = torch.Generator().manual_seed(100 * seed + more), [], [], 2
    for width, height in shapes:
        size = config.tiling.size(config.tiling.plan(width, height))
        images.append(torch.randint(0, 256, (3, *size), generator=draw, dtype=torch.uint8))
        rows, columns = (side // config.encoder.cell for side in size)
        places.append(range(length, length + 1 + rows * (columns + 1)))  # a class token, and an end of each row
        length = places[-1].stop + 1  # a word between images
    tokens = torch.randint(0, config.decoder.vocab, (length + WORDS + more,), generator=draw)
    labels = torch.cat([tokens[1:], torch.tensor([-100])])  # the last token of a sample has nothing after it
    for run in places:
        labels[run.start : run.stop - 1] = -100
    labels[:: 2 + seed % 3] = -100
    return Sample(tokens, labels, images, places)


def packed(samples: Sequence[Sample]) -> PackedBatch:
    """The samples one behind another, as one micro-batch of ours."""
    ends = torch.tensor([0, *(len(sample.tokens) for sample in samples)]).cumsum(0)
    labels = torch.cat([sample.labels for sample in samples])[None]
    images = [image for sample in samples for image in sample.images]
    sizes = tuple((image.shape[1], image.shape[2]) for image in images)
    starts = ends[:-1].tolist()
    places = [
        start + place for start, sample in zip(starts, samples, strict=True) for run in sample.places for place in run
    ]
    return PackedBatch(
        tokens=torch.cat([sample.tokens for sample in samples])[None],
        labels=labels,
        loss_weights=(labels >= 0).float(),
        position_ids=torch.cat([torch.arange(len(sample.tokens)) for sample in samples])[None],
        cu_seqlens=ends.int(),
        tiles=VariedTiles(torch.cat([torch.empty(0, dtype=torch.uint8), *(x.flatten() for x in images)]), sizes),
        visual_index=torch.tensor(places, dtype=torch.int64),
        sizes=sizes,
    )
