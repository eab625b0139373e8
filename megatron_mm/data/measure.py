"""What every sample of a set costs in tokens and tiles, known from its text and its images' headers alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from megavlm.platform.errors import InputError
from megavlm.platform.images.decode import probe
from megavlm.platform.images.tiling import choose_grid, tile_count
from megavlm.platform.shards import ShardReader

from ..config import ModelConfig, Tiling
from .conversation import ChatML
from .samples import BadSample, read_conversation
from .tokenizer import TextTokenizer


@dataclasses.dataclass(frozen=True)
class Rejected:
    """A sample that is not drawn, and why."""

    set: str
    key: str
    reason: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Measured:
    """One set: keys, and int arrays [samples] of tokens (0 where rejected), tiles and tokens to learn."""

    keys: list[str]
    tokens: np.ndarray
    tiles: np.ndarray
    targets: np.ndarray
    images: list[tuple[int, ...]]  # tiles of each image, by sample
    rejected: list[Rejected]


def template(model: ModelConfig, tokenizer: TextTokenizer, system: str) -> ChatML:
    """The chat template for a model: its tile tags and its tokens per tile."""
    return ChatML(tokenizer, model.injection.tile_prefix, model.tokens_per_tile, system)


def tiles_of(image: bytes, tiling: Tiling) -> int:
    """How many tiles an encoded image becomes, thumbnail included, from its header; raises BadSample."""
    try:
        info = probe(image)
    except InputError as error:
        raise BadSample(f"image_{getattr(error, 'reason', 'unreadable')}", str(error)) from None
    grid = choose_grid(info.width, info.height, tiling.tile, tiling.min_tiles, tiling.max_tiles)
    return tile_count(*grid, tiling.thumbnail)


def measure(
    name: str,
    reader: ShardReader,
    chat: ChatML,
    tiling: Tiling,
    capacity: int,
    tick: Callable[[int], object] = lambda _: None,
) -> Measured:
    """Measure every sample of a set; `tick(1)` after each. Raises InputError when not one is usable."""
    keys = list(reader.keys())
    table = np.zeros((3, len(keys)), np.int64)
    rejected: list[Rejected] = []
    images: list[tuple[int, ...]] = [()] * len(keys)
    for index, key in enumerate(keys):
        try:
            conversation = read_conversation(reader.read(index))
            counts = tuple(tiles_of(image, tiling) for image in conversation.images)
            encoded = chat.encode(conversation.messages, counts)
            if len(encoded.tokens) > capacity:
                raise BadSample("too_long", f"{len(encoded.tokens)} tokens, and a pack holds {capacity}")
            table[:, index] = len(encoded.tokens), encoded.tiles, encoded.target.sum()
            images[index] = counts
        except BadSample as error:
            rejected.append(Rejected(name, key, error.reason, error.what))
        tick(1)
    if len(rejected) == len(keys):
        first = rejected[0]
        raise InputError(
            f"data set '{name}' holds no usable sample; the first, '{first.key}': {first.reason}",
            where=f"data.sets.{name}",
            fix=first.detail,
        )
    return Measured(keys, tokens=table[0], tiles=table[1], targets=table[2], images=images, rejected=rejected)
