"""Packed sequences -> global batches: where one ends and the next begins. No files, no text.

Whatever the unit, a batch is a function of the draws alone, and a longer plan starts with the shorter one.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from .filling import WINDOW, Alone, Filler, Windows, packed
from .items import Items
from .rows import Rows

AHEAD = 16  # batches that are shuffled together, where each holds one modality
PIECE = 64  # draws that are sorted by modality together
ONE_KIND = 64  # rows filled together of one modality: with more, there would be none of the other for long


def batches(
    draws: Iterable[Items], capacity: int, unit: str, size: int, seed: int, *, pack: bool = True, grouped: bool = False
) -> Iterator[Rows]:
    """Global batches of `size` units: "packs", "samples" or "tokens" (it closes with the sample that reaches them).

    pack=False puts one conversation in each row; grouped: see `ByModality`. What does not fill a batch at the end of
    finite draws is left out.
    """

    def make() -> Cutter:
        if unit == "packs":
            window = ONE_KIND if grouped else WINDOW
            return OfPacks(size, Windows(capacity, window) if pack else Alone())
        return (OfSamples if unit == "samples" else OfTokens)(size, capacity if pack else None)

    cutter = ByModality(make, seed) if grouped else make()
    for part in draws:
        yield from cutter.add(part)
    yield from cutter.finish()


class Cutter(abc.ABC):
    """Takes draws, and gives back the global batches that they close."""

    @abc.abstractmethod
    def add(self, items: Items) -> Iterator[Rows]:
        """More draws; yields the batches that are now whole."""

    @abc.abstractmethod
    def rest(self) -> Items:
        """The draws that are in no batch yet."""

    def finish(self) -> Iterator[Rows]:
        """There are no more draws; yields what batches can still be made."""
        yield from ()


class OfSamples(Cutter):
    """So many samples each; with a capacity packed by themselves, without one each in a row of its own."""

    def __init__(self, size: int, capacity: int | None) -> None:
        self._size, self._capacity, self._waiting = size, capacity, Items.empty()

    def add(self, items: Items) -> Iterator[Rows]:
        self._waiting = Items.concat([self._waiting, items])
        first = 0
        for last in self._ends(self._waiting):
            yield packed(self._waiting[first:last], self._capacity)
            first = last
        self._waiting = self._waiting[first:]

    def _ends(self, items: Items) -> Iterator[int]:
        yield from range(self._size, len(items) + 1, self._size)

    def rest(self) -> Items:
        return self._waiting


class OfTokens(OfSamples):
    """Closed by the sample that reaches so many tokens."""

    def _ends(self, items: Items) -> Iterator[int]:
        ends, before = np.cumsum(items.tokens, dtype=np.int64), 0
        while (last := int(np.searchsorted(ends, before + self._size)) + 1) <= len(ends):
            yield last
            before = int(ends[last - 1])


class OfPacks(Cutter):
    """So many rows each, as they are filled."""

    def __init__(self, size: int, filler: Filler) -> None:
        self._size, self._filler, self._rows = size, filler, Rows.concat([])

    def add(self, items: Items) -> Iterator[Rows]:
        for rows in self._filler.add(items):
            yield from self._cut(rows)

    def _cut(self, rows: Rows) -> Iterator[Rows]:
        whole = Rows.concat([self._rows, rows])
        last = len(whole) - len(whole) % self._size
        self._rows = whole[last:]
        yield from (whole[first : first + self._size] for first in range(0, last, self._size))

    def rest(self) -> Items:
        return Items.concat([self._rows.items, self._filler.rest()])

    def finish(self) -> Iterator[Rows]:
        yield from self._cut(self._filler.finish())


class ByModality(Cutter):
    """Global batches that hold either only samples with images or only samples without, longest row first.

    LLaVA's `group_by_modality_length` (llava_trainer.py of its published code) as a stream: there, batches are shuffled
    over a whole pass, here AHEAD at a time. Of finite draws, what is left of both kinds makes
    the last batches together, as there.
    """

    def __init__(self, make: Callable[[], Cutter], seed: int) -> None:
        self._make, self._rng = make, np.random.default_rng([seed, 4])
        self._kinds = make(), make()
        self._closed: list[Rows] = []

    def add(self, items: Items) -> Iterator[Rows]:
        for first in range(0, len(items), PIECE):
            self._sort(items[first : first + PIECE])
            while len(self._closed) >= AHEAD:
                yield from self._shuffled()

    def _sort(self, items: Items) -> None:
        pictured = items.images.counts > 0
        for cutter, mask in zip(self._kinds, (pictured, ~pictured), strict=True):
            if mask.any():
                self._closed += cutter.add(items.take(np.flatnonzero(mask)))

    def _shuffled(self) -> Iterator[Rows]:
        closed, self._closed = self._closed[:AHEAD], self._closed[AHEAD:]
        yield from (_longest_first(closed[k]) for k in np.argsort(self._rng.random(len(closed)), kind="stable"))

    def rest(self) -> Items:
        return Items.concat([cutter.rest() for cutter in self._kinds])

    def finish(self) -> Iterator[Rows]:
        for cutter in self._kinds:
            self._closed += cutter.finish()
        while self._closed:
            yield from self._shuffled()
        mixed = self._make()
        yield from map(_longest_first, [*mixed.add(self.rest()), *mixed.finish()])


def _longest_first(rows: Rows) -> Rows:
    return rows.take(np.argsort(-rows.tokens, kind="stable"))
