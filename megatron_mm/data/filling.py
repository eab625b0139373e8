"""Draws -> packed sequences that are full: what fits together. No files, no text."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from itertools import chain

import numpy as np

from .items import Items
from .knapsack import best_fit
from .rows import Rows

WINDOW = 512  # packed sequences that are filled together
HELD_BACK = 64  # of these, the emptiest, whose items try again
PATIENCE = 8  # windows after which an item goes out as it is


def packed(items: Items, capacity: int | None) -> Rows:
    """Items in as few rows as best fit makes of them; without a capacity, each in a row of its own."""
    if capacity is None:
        return Rows(items, np.arange(1, len(items) + 1))
    return Rows.of(items, best_fit(items.tokens.tolist(), capacity))


class Filler(abc.ABC):
    """Takes draws, and gives back the rows that they fill."""

    @abc.abstractmethod
    def add(self, items: Items) -> Iterator[Rows]:
        """More draws; yields rows."""

    def rest(self) -> Items:
        """The draws that are in no row yet."""
        return Items.empty()

    def finish(self) -> Rows:
        """Rows of these, when there are no more."""
        return Rows.concat([])


class Alone(Filler):
    """One conversation in each row."""

    def add(self, items: Items) -> Iterator[Rows]:
        yield packed(items, None)


class Windows(Filler):
    """Rows filled from about WINDOW rows' worth of draws at a time.

    The HELD_BACK emptiest ones of a window are taken apart, and their items go first into the next one, at most
    PATIENCE times. Rows are shuffled, since those that hold a long item come first.
    """

    def __init__(self, capacity: int, seed: list[int]) -> None:
        self._capacity, self._rng = capacity, np.random.default_rng(seed)
        self._waiting, self._age = Items.empty(), np.zeros(0, np.int8)

    def rest(self) -> Items:
        return self._waiting

    def finish(self) -> Rows:
        return packed(self._waiting, self._capacity)

    def add(self, items: Items) -> Iterator[Rows]:
        while True:
            missing = WINDOW * self._capacity - int(self._waiting.tokens.sum(dtype=np.int64))
            last = int(np.searchsorted(np.cumsum(items.tokens, dtype=np.int64), missing)) + 1
            self._waiting = Items.concat([self._waiting, items[:last]])
            self._age = np.concatenate([self._age, np.zeros(min(last, len(items)), np.int8)])
            if last > len(items):
                return
            items = items[last:]
            yield self._fill()

    def _fill(self) -> Rows:
        groups = best_fit(self._waiting.tokens.tolist(), self._capacity)
        flat = np.array(list(chain.from_iterable(groups)), np.int64)
        rows = Rows(self._waiting.take(flat), np.cumsum(list(map(len, groups))))
        back = np.zeros(len(rows), bool)
        back[_emptiest(rows, self._age[flat])] = True
        given = np.flatnonzero(~back)
        again = np.sort(flat[np.repeat(back, np.diff(rows.ends, prepend=0))])
        self._waiting, self._age = self._waiting.take(again), self._age[again] + np.int8(1)
        return rows.take(given[np.argsort(self._rng.random(len(given)), kind="stable")])


def _emptiest(rows: Rows, age: np.ndarray) -> np.ndarray:
    """Numbers of the HELD_BACK emptiest rows in which no item has waited too long, ascending."""
    may_wait = np.flatnonzero(np.maximum.reduceat(age, rows.starts) < PATIENCE)
    return np.sort(may_wait[np.argsort(rows.tokens[may_wait], kind="stable")[:HELD_BACK]])
