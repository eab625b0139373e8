"""Samples side by side in one packed sequence, as numpy arrays. Loads no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ..contracts import Sizes
from .context import ContextArrays, side_by_side
from .encoded import Encoded

IGNORED = -100  # the label of a position from which nothing is learnt
GREY = 128


@dataclasses.dataclass(frozen=True)
class Prepared:
    """One sample ready to pack: its tokens, its tiles where they come with it, image by image uint8 [n, 3, H, W], and
    its weight; `sizes`, (height, width) of each tile, are read where tiles differ, and also said of tiles elsewhere."""

    encoded: Encoded
    tiles: Sequence[np.ndarray]
    weight: float
    sizes: Sizes = ()

    @property
    def bytes(self) -> int:
        """Memory held, roughly."""
        return sum(tiles.nbytes for tiles in self.tiles) + 10 * len(self.encoded.tokens)


def shown(encoded: Encoded, images: Sequence[np.ndarray], weight: float) -> Prepared:
    """A sample with its images as `Tiling.cut` gives them, uint8 [n, H, W, 3] each."""
    tiles = [np.ascontiguousarray(image.transpose(0, 3, 1, 2)) for image in images]
    return Prepared(encoded, tiles, weight, tuple(each.shape[2:] for each in tiles for _ in each))


def grey(tiles: int, size: tuple[int, int]) -> np.ndarray:
    """Tiles that show nothing, uint8 [tiles, 3, height, width]."""
    return np.full((tiles, 3, *size), GREY, np.uint8)


def side_by_side_tiles(images: Sequence[np.ndarray], side: int | None) -> np.ndarray:
    """Tiles uint8 [n, 3, H, W] of some images, one after the other: [all, 3, side, side], or without a `side`, where
    they differ in size, their pixels flat."""
    if side is None:
        return np.concatenate([np.zeros(0, np.uint8), *(tiles.reshape(-1) for tiles in images)])
    return np.concatenate([np.zeros((0, 3, side, side), np.uint8), *images])


@dataclasses.dataclass(frozen=True)
class PackArrays:
    """One packed sequence of s positions; the fields of megatron_mm.contracts.PackedBatch without its batch axis.

    tokens, labels, position_ids int64 [s]; loss_weights float32 [s]; cu_seqlens int32 [samples + 1], one more where
    there is padding; tiles uint8 [n, 3, side, side]; visual_index int64 [inline tiles' tokens]; inline_tiles int64 [k],
    None for all n; context: None where no tile can be beside the sequence. Where tiles differ in size they are flat,
    and `sizes` says height and width of each.
    """

    tokens: np.ndarray
    labels: np.ndarray
    loss_weights: np.ndarray
    position_ids: np.ndarray
    cu_seqlens: np.ndarray
    tiles: np.ndarray
    visual_index: np.ndarray
    inline_tiles: np.ndarray | None = None
    context: ContextArrays | None = None
    sizes: Sizes | None = None


def assemble(
    samples: Sequence[Prepared], length: int, side: int | None, padding: int, has_context: bool = False
) -> PackArrays:
    """Put samples one after the other and fill up to `length` with `padding`, a segment of its own.

    The label of a position is the next token of the same sample where that is to be learnt. `side` of a tile in pixels,
    None where tiles differ in size. `has_context`: the samples have contexts, and the pack has one though it be empty.
    Raises ValueError when the samples do not fit.
    """
    sizes = [len(sample.encoded.tokens) for sample in samples]
    used = sum(sizes)
    if used > length:
        raise ValueError(f"{used} tokens do not fit {length}")
    tail = [length - used] if used < length else []
    tokens = np.concatenate([*(sample.encoded.tokens for sample in samples), np.full(sum(tail), padding, np.int64)])
    labels = np.concatenate([*(_labels(sample.encoded) for sample in samples), np.full(sum(tail), IGNORED, np.int64)])
    weights = np.array([*(sample.weight for sample in samples), *(0.0 for _ in tail)], np.float32)
    per_position = np.repeat(weights, [*sizes, *tail])
    visual = np.concatenate([*(sample.encoded.visual for sample in samples), np.zeros(sum(tail), bool)])
    inline, context = _woven([sample.encoded for sample in samples], length) if has_context else (None, None)
    return PackArrays(
        tokens=tokens,
        labels=labels,
        loss_weights=np.where(labels == IGNORED, np.float32(0), per_position),
        position_ids=np.concatenate([np.arange(size, dtype=np.int64) for size in [*sizes, *tail]]),
        cu_seqlens=np.cumsum([0, *sizes, *tail]).astype(np.int32),
        tiles=side_by_side_tiles([tiles for sample in samples for tiles in sample.tiles], side),
        visual_index=np.flatnonzero(visual).astype(np.int64),
        inline_tiles=inline,
        context=context,
        sizes=None if side is not None else tuple(size for sample in samples for size in sample.sizes),
    )


def _woven(samples: Sequence[Encoded], length: int) -> tuple[np.ndarray, ContextArrays]:
    """The tiles of a pack whose tokens stand in its sequence, and the context of the others."""
    tiles = [sample.tiles for sample in samples]
    context = side_by_side([sample.context for sample in samples if sample.context is not None], tiles, length)
    return np.delete(np.arange(sum(tiles)), context.tiles), context


def normalised(arrays: PackArrays, how: str) -> PackArrays:
    """The pack with its loss weights as `Loss.normalisation` wants them; what is learnt from stays the same."""
    weights, learnt = arrays.loss_weights, arrays.loss_weights > 0
    if how == "per_microbatch":
        weights = weights / max(float(weights.sum()), np.finfo(np.float32).tiny)
    elif how == "sqrt_length":
        weights = weights / np.sqrt(_answer_lengths(arrays.labels != IGNORED, arrays.cu_seqlens))
    return dataclasses.replace(arrays, loss_weights=np.where(learnt, weights, np.float32(0)).astype(np.float32))


def _answer_lengths(target: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:
    """For each position the number of targets in its run of neighbouring ones of a sample; 1 elsewhere. float32 [s]."""
    starts = target & ~np.concatenate([[False], target[:-1]])
    starts[cu_seqlens[:-1]] |= target[cu_seqlens[:-1]]
    run = np.cumsum(starts)
    return np.where(target, np.bincount(run, weights=target)[run], 1.0).astype(np.float32)


def _labels(encoded: Encoded) -> np.ndarray:
    labels = np.full(len(encoded.tokens), IGNORED, np.int64)
    labels[:-1] = np.where(encoded.target[1:], encoded.tokens[1:], IGNORED)
    return labels
