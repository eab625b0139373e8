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
HELD_BACK = 16  # one row of so many tries again


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
    """Rows filled from about `window` rows' worth of draws at a time.

    Best fit makes the rows that hold a long item first; they go out in the order of the draws, so that a global batch
    is a draw from the mixture, and a set of few samples goes through its passes one after the other. Of the later half
    of a window, the emptiest rows are taken apart, and their items go into the next one, as its first.
    """

    def __init__(self, capacity: int, window: int = WINDOW) -> None:
        self._capacity, self._window = capacity, window
        self._waiting = Items.empty()

    def rest(self) -> Items:
        return self._waiting

    def finish(self) -> Rows:
        last, self._waiting = self._waiting, Items.empty()
        return packed(last, self._capacity)

    def add(self, items: Items) -> Iterator[Rows]:
        while True:
            missing = self._window * self._capacity - int(self._waiting.tokens.sum(dtype=np.int64))
            last = int(np.searchsorted(np.cumsum(items.tokens, dtype=np.int64), missing)) + 1
            self._waiting = Items.concat([self._waiting, items[:last]])
            if last > len(items):
                return
            items = items[last:]
            yield self._fill()

    def _fill(self) -> Rows:
        groups = best_fit(self._waiting.tokens.tolist(), self._capacity)
        drawn = np.array(list(chain.from_iterable(groups)), np.int64)
        rows = Rows(self._waiting.take(drawn), np.cumsum(list(map(len, groups))))
        order = _in_time(rows, drawn)
        early, late = np.split(order, [len(order) // 2])
        by_fill = np.argsort(rows.tokens[late], kind="stable")
        back = np.zeros(len(rows), bool)
        back[late[by_fill[: self._window // HELD_BACK]]] = True
        again = np.sort(drawn[np.repeat(back, np.diff(rows.ends, prepend=0))])
        self._waiting = self._waiting.take(again)
        return rows.take(np.concatenate([early, late[~back[late]]]))


def _in_time(rows: Rows, drawn: np.ndarray) -> np.ndarray:
    """The rows by when their longest item was drawn: short ones go where there is room, early ones to the longest."""
    longest = np.repeat(np.maximum.reduceat(rows.items.tokens, rows.starts), np.diff(rows.ends, prepend=0))
    when = np.where(rows.items.tokens == longest, drawn, len(drawn))
    return np.argsort(np.minimum.reduceat(when, rows.starts), kind="stable")
