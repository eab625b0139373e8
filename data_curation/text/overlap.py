"""N-gram overlap with benchmarks, after GPT-3's appendix C (arXiv 2005.14165).

From there: what a word is (`words.words_of`), n = 13, and 8 as the least n for items that are shorter. Otherwise than
there, a sample that collides is dropped whole instead of losing 200 characters on either side, since half an answer
teaches nothing; grams that many samples share are not forgiven; and an item of fewer than 8 words counts where it is
the whole of a message, since anywhere else such a run of words is chance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from .words import gram_hashes, word_hashes, words_of

GRAM = 13
SHORTEST = 8
Items = Iterable[tuple[int, Sequence[str]]]


@dataclasses.dataclass(frozen=True)
class Leak:
    """Which item of which benchmark a text holds, and the words that say so."""

    benchmark: str
    item: int
    ngram: str


@dataclasses.dataclass(frozen=True)
class _Table:
    """Sorted hashes uint64 [grams], each once, and the first item with each, int32 [grams]: 12 bytes a gram."""

    hashes: np.ndarray
    items: np.ndarray

    @classmethod
    def of(cls, hashes: Sequence[np.ndarray], items: Sequence[int]) -> _Table:
        owners = np.repeat(np.asarray(items, np.int32), [len(part) for part in hashes])
        unique, first = np.unique(np.concatenate([*hashes, np.empty(0, np.uint64)]), return_index=True)
        return cls(unique, owners[first])

    def find(self, grams: np.ndarray) -> tuple[int, int] | None:
        """(position in `grams`, item) of the first that is known."""
        if not len(self.hashes) or not len(grams):
            return None
        places = np.minimum(np.searchsorted(self.hashes, grams), len(self.hashes) - 1)
        hits = np.flatnonzero(self.hashes[places] == grams)
        return (int(hits[0]), int(self.items[places[hits[0]]])) if len(hits) else None


class OverlapIndex:
    """The grams of named benchmarks, as hashes by their length: 13, 8 to 12 for items of so many words, 1 to 7 whole.

    `items` numbers all texts' items through; a name and number come back from it.
    """

    def __init__(self, benchmarks: Mapping[str, Items], n: int = GRAM, shortest: int = SHORTEST) -> None:
        if not 1 <= shortest <= n:
            raise ValueError(f"shortest {shortest} is not within 1 to n {n}")
        self.n, self.shortest = n, shortest
        self.items: list[tuple[str, int]] = []
        self._tables = {length: _Table.of(*parts) for length, parts in sorted(self._collect(benchmarks).items())}

    def _collect(self, benchmarks: Mapping[str, Items]) -> dict[int, tuple[list[np.ndarray], list[int]]]:
        found: dict[int, tuple[list[np.ndarray], list[int]]] = {}
        for name, items in benchmarks.items():
            for number, texts in items:
                for hashes in filter(len, (word_hashes(words_of(text)) for text in texts)):
                    length = min(self.n, len(hashes))
                    grams, owners = found.setdefault(length, ([], []))
                    grams.append(gram_hashes(hashes, length))
                    owners.append(len(self.items))
                self.items.append((name, number))
        return found

    @property
    def grams(self) -> int:
        """How many different grams are held."""
        return sum(len(table.hashes) for table in self._tables.values())

    def find(self, messages: Iterable[str]) -> Leak | None:
        """The first leak, message by message: longer grams first, then the earlier place; None in a clean sample."""
        for message in messages:
            words = words_of(message)
            hashes = word_hashes(words)
            for length in sorted(self._tables, reverse=True):
                # no run of words is longer than the message, and the shortest items have to be all of it
                if length > len(words) or (length < self.shortest and length != len(words)):
                    continue
                if found := self._tables[length].find(gram_hashes(hashes, length)):
                    place, item = found
                    return Leak(*self.items[item], " ".join(words[place : place + length]))
        return None
