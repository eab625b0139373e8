"""Draws from a mixture of sets: which sample comes when. A function of sizes, shares and seed alone; no files, no text.

Every set is gone through in passes. A pass takes its shards in an order of its own, `window` of them at a time: the
samples of such a block are shuffled together, so that a reader has about `window` shards of a set open, and comes back
to none of them before the next pass. The sets are woven together evenly: draw k of a set that weighs w (of all weights
together 1) comes at a random moment of [k / w, (k + 1) / w). So any run of n draws holds n * w of them to within one or
two, sets with as many passes as weight end together, and a longer plan starts with the shorter one.

Only Generator.random() and stable sorts decide: numpy may change the streams of its other methods between versions.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from .columns import Sizes
from .items import Items, Ragged
from .substitutes import substitutes

CHUNK = 8192  # draws made together


@dataclasses.dataclass(frozen=True)
class Source:
    """A set to draw from: its number, its sizes, how much it weighs, and after how many draws it ends (None: never)."""

    number: int
    name: str
    sizes: Sizes
    weight: float
    quota: int | None = None


def draw(sources: Sequence[Source], capacity: int, window: int, seed: int) -> Iterator[Items]:
    """Draws in chunks, endless unless every source has a quota. Samples above `capacity` tokens are left out."""
    streams = [_Stream(source, capacity, window, seed) for source in sorted(sources, key=lambda s: s.name)]
    now = 0.0
    while live := [stream for stream in streams if not stream.done]:
        now += CHUNK / sum(stream.weight for stream in live)
        due = [stream.until(now) for stream in live]
        order = np.argsort(np.concatenate([moments for moments, _ in due]), kind="stable")
        yield Items.concat([items for _, items in due]).take(order)


class _Stream:
    """One set's draws in their order, each with its moment."""

    def __init__(self, source: Source, capacity: int, window: int, seed: int) -> None:
        self.weight, self._quota = source.weight, source.quota
        self._moments = np.random.default_rng([seed, 1, *source.name.encode()])
        self._blocks = _blocks(source, capacity, window, np.random.default_rng([seed, 2, *source.name.encode()]))
        self._items = Items.empty()  # of the present block, those not yet given
        self._given = 0  # draws whose moments are decided
        self._early = np.zeros(0)  # decided moments that are still to come, ascending

    @property
    def done(self) -> bool:
        return self._quota is not None and self._given >= self._quota and not len(self._early)

    def until(self, now: float) -> tuple[np.ndarray, Items]:
        """The draws whose moments come before `now`, with these moments."""
        last = int(np.ceil(now * self.weight)) + 1
        last = max(self._given, last if self._quota is None else min(last, self._quota))
        fresh = (np.arange(self._given, last) + self._moments.random(last - self._given)) / self.weight
        self._given = last
        moments = np.concatenate([self._early, fresh])
        count = int(np.searchsorted(moments, now))
        self._early = moments[count:]
        return moments[:count], self._next(count)

    def _next(self, count: int) -> Items:
        parts, held = [self._items], len(self._items)
        while held < count:
            parts.append(next(self._blocks))
            held += len(parts[-1])
        whole = Items.concat(parts)
        self._items = whole[count:held]
        return whole[:count]


def _blocks(source: Source, capacity: int, window: int, rng: np.random.Generator) -> Iterator[Items]:
    """Shuffled blocks of a set, pass after pass, for ever."""
    shards = len(source.sizes.starts) - 1
    if shards <= window:
        yield from _passes(_block(source, capacity, np.arange(shards)), rng)
    for epoch in itertools.count():
        order = np.argsort(rng.random(shards), kind="stable")
        for first in range(0, shards, window):
            items = _block(source, capacity, np.sort(order[first : first + window]))
            items = items.take(np.argsort(rng.random(len(items)), kind="stable"))
            yield dataclasses.replace(items, epoch=np.full(len(items), epoch, np.int32))


def _passes(items: Items, rng: np.random.Generator) -> Iterator[Items]:
    """Passes over a set that is one block, several at a time where they are short."""
    count, several = len(items), max(1, CHUNK // max(len(items), 1))
    for first in itertools.count(0, several):
        order = np.argsort(rng.random((several, count)), axis=1, kind="stable").ravel()
        epochs = np.repeat(np.arange(first, first + several, dtype=np.int32), count)
        yield dataclasses.replace(items.take(order), epoch=epochs)


def _block(source: Source, capacity: int, shards: np.ndarray) -> Items:
    """The usable samples of some shards, in their order, each with its substitute."""
    parts = [_shard(source, capacity, int(source.sizes.starts[k]), int(source.sizes.starts[k + 1])) for k in shards]
    items = Items.concat(parts)
    return dataclasses.replace(items, substitute=substitutes(items.index, items.tokens, items.images))


def _shard(source: Source, capacity: int, first: int, last: int) -> Items:
    tokens = source.sizes.tokens(first, last)
    good = np.flatnonzero((tokens > 0) & (tokens <= capacity))
    images: Ragged = source.sizes.images(first, last)
    return Items(
        set=np.full(len(good), source.number, np.int16),
        index=first + good,
        epoch=np.zeros(len(good), np.int32),
        tokens=tokens[good],
        targets=source.sizes.targets(first, last)[good],
        images=images.take(good),
        substitute=np.full(len(good), -1, np.int64),
    )
