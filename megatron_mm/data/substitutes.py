"""Which sample takes the place of one that turns out unreadable while training."""

from __future__ import annotations

import numpy as np

from .items import NONE, Ragged

_ODD = np.uint64(0x9E3779B97F4A7C15)


def substitutes(index: np.ndarray, tokens: np.ndarray, images: Ragged) -> np.ndarray:
    """int64 [n]: for each sample, another with its images cut alike and at most as many tokens; NONE without.

    It is the next shorter one, so that little of the room stays empty. What is given are neighbours (a block of
    shards), so that it is near, too.
    """
    order = np.lexsort((index, tokens, images.counts, _mixed(images)))
    before, after = order[:-1], order[1:]
    found = np.full(len(index), NONE, np.int64)
    found[after] = np.where(_same(images, before, after), index[before], NONE)
    # the shortest of its kind has none before it, but the next may be of its length
    lone = (found[before] == NONE) & _same(images, before, after) & (tokens[before] == tokens[after])
    found[before[lone]] = index[after[lone]]
    return found


def _mixed(images: Ragged) -> np.ndarray:
    """uint64 [n]: equal lists have equal numbers, different ones nearly always different ones."""
    inside = np.arange(len(images.values)) - np.repeat(images.offsets[:-1], images.counts)
    power = np.full(int(images.counts.max(initial=0)), _ODD).cumprod(dtype=np.uint64)
    cut = images.values.astype(np.uint64) @ np.array([1 << 32, 1 << 16, 1], np.uint64)
    terms = np.concatenate([np.zeros(1, np.uint64), cut * power[inside]])
    ends = np.cumsum(terms, dtype=np.uint64)
    return ends[images.offsets[1:]] - ends[images.offsets[:-1]]


def _same(images: Ragged, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """bool [len(a)]: whether lists a[i] and b[i] are equal."""
    equal = images.counts[a] == images.counts[b]
    rows = np.flatnonzero(equal)
    left, right = images.take(a[rows]), images.take(b[rows])
    equal[rows] = left.sums((left.values != right.values).any(axis=1)) == 0
    return equal
