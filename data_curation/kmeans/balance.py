"""How many images each cluster gives: top-down balanced sampling (arXiv 2405.15613, from its description)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def cap(sizes: np.ndarray, target: int) -> int:
    """The largest c for which clusters that give min(c, size) give at most `target` in all; by binary search."""
    low, high = 0, int(sizes.max(initial=0))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(sizes, middle).sum() <= target else (low, middle - 1)
    return low


def shares(sizes: np.ndarray, target: int, rng: np.random.Generator) -> np.ndarray:
    """int64 [k], summing to min(target, all): everybody gives the same as far as it has it.

    What is left over is one image each of clusters drawn by `rng` among those that have more.
    """
    most = cap(sizes, target)
    given = np.minimum(sizes, most).astype(np.int64)
    have_more = np.flatnonzero(sizes > most)
    left = min(target - int(given.sum()), len(have_more))
    given[rng.choice(have_more, left, replace=False)] += 1
    return given


def top_down(sizes: np.ndarray, parents: Sequence[np.ndarray], target: int, seed: int) -> np.ndarray:
    """Each finest cluster's share, int64 [k], from the images in each, `sizes` int64 [k].

    `parents[t]` int32 [k_t] names the cluster of level t + 1 that each of level t lies in. The target is shared among
    the coarsest clusters, then each one's share among its children, down to the finest.
    """
    rng = np.random.default_rng(seed)
    by_level = [sizes]
    for up in parents:
        by_level.append(np.bincount(up, weights=by_level[-1], minlength=int(up.max()) + 1).astype(np.int64))
    given = shares(by_level[-1], target, rng)
    for up, below in zip(reversed(parents), reversed(by_level[:-1]), strict=True):
        parts = np.zeros(len(below), np.int64)
        children_of = np.split(np.argsort(up, kind="stable"), np.cumsum(np.bincount(up, minlength=len(given)))[:-1])
        for share, children in zip(given.tolist(), children_of, strict=True):
            parts[children] = shares(below[children], share, rng)
        given = parts
    return given
