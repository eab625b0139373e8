"""Draws from a weighted mixture, and their packing into sequences of a fixed length. Integers only: no files, no text.

Both are functions of a seed alone, and a longer plan starts with the shorter one: training on for more steps never
changes what the first steps saw.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Draw:
    """One sample drawn: the set it comes from, its number there, which pass over the set this is, and its tokens."""

    set: str
    index: int
    epoch: int
    length: int


def draw(lengths: Mapping[str, np.ndarray], weights: Mapping[str, float], seed: int) -> Iterator[Draw]:
    """Endless draws: a set by its weight, then the next sample of that set's shuffled pass.

    lengths[set] is int [samples], tokens of each; a length of 0 marks a sample that is not to be drawn.
    """
    names = sorted(name for name, weight in weights.items() if weight > 0)
    edges = np.cumsum([weights[name] for name in names])
    streams = {name: _passes(lengths[name], [seed, *name.encode()]) for name in names}
    # Only Generator.random() is used: numpy may change its other methods' streams between versions.
    dice = np.random.default_rng(seed)
    while True:
        chosen = names[min(int(np.searchsorted(edges, dice.random() * edges[-1], side="right")), len(names) - 1)]
        epoch, index = next(streams[chosen])
        yield Draw(chosen, index, epoch, int(lengths[chosen][index]))


def _passes(lengths: np.ndarray, seed: list[int]) -> Iterator[tuple[int, int]]:
    usable = np.flatnonzero(lengths)
    rng = np.random.default_rng(seed)
    for epoch in itertools.count():
        for index in usable[np.argsort(rng.random(len(usable)))]:
            yield epoch, int(index)


def pack(draws: Iterator[Draw], capacity: int, seed: int, window: int = 64) -> Iterator[list[Draw]]:
    """Packs of draws that together fit `capacity` tokens; no draw is split, lost or repeated.

    Works on windows of about `window` packs: best fit inside a window, the emptiest pack's draws go back into the next
    window, and the packs are shuffled, since those that hold a long sample come first.
    """
    rng = np.random.default_rng([seed, 1])
    waiting: list[Draw] = []
    tokens = 0
    for item in draws:
        waiting.append(item)
        tokens += item.length
        if tokens < window * capacity:
            continue
        packs = _best_fit(waiting, capacity)
        emptiest = min(range(len(packs)), key=lambda k: (sum_of(packs[k]), k))
        waiting = packs.pop(emptiest)
        tokens = sum_of(waiting)
        yield from (packs[k] for k in np.argsort(rng.random(len(packs))))
    yield from _best_fit(waiting, capacity)


def sum_of(draws: Sequence[Draw]) -> int:
    """Tokens of some draws together."""
    return sum(item.length for item in draws)


def _best_fit(draws: Sequence[Draw], capacity: int) -> list[list[Draw]]:
    groups = best_fit([item.length for item in draws], capacity)
    return [[draws[k] for k in group] for group in groups]


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins as lists of indices, ascending inside a bin; each item into the fullest bin that still takes it.

    Items longer than a quarter of the capacity come first, longest first: they decide how well the bins fill. The rest
    keep their order. Sorted too, samples of one length, which are mostly of one kind, would share packs, and a global
    batch would no longer be a draw from the mixture, which slows learning (docs/LOG.md has the figures).
    Leaves less than a quarter of the capacity empty in all bins but the last few. Raises ValueError for an item above
    `capacity`.
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, bin), ascending: the first that fits is the fullest
    for index in sorted(range(len(lengths)), key=lambda k: (-lengths[k] if 4 * lengths[k] > capacity else 0, k)):
        if lengths[index] > capacity:
            raise ValueError(f"an item of {lengths[index]} tokens does not fit {capacity}")
        at = bisect.bisect_left(room, (lengths[index], -1))
        free, which = room.pop(at) if at < len(room) else (capacity, len(bins))
        if which == len(bins):
            bins.append([])
        bins[which].append(index)
        bisect.insort(room, (free - lengths[index], which))
    return [sorted(group) for group in bins]
