"""What stands for each sample of a global batch, given which are unreadable: a function of those alone, on any rank."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from megavlm.platform.errors import InputError

from .manifest import Entry, Pack, substitute

Bad = tuple[int, int]  # (number of the set in the manifest, number of the sample in it)
Place = tuple[int, int]  # (row of the manifest, place in the pack)


class Found(NamedTuple):
    """A sample found unreadable. `tells`: of the processes that find the same, this one reports it."""

    entry: Entry
    error: InputError
    row: int
    tells: bool


class StandIns:
    """`known`: what all processes know to be unreadable. What turns out so besides is collected in `found`."""

    def __init__(self, packs: Sequence[Pack], numbers: Mapping[str, int], known: Collection[Bad]) -> None:
        self._packs, self._numbers, self._known = packs, numbers, known
        self.found: dict[Bad, Found] = {}

    def of(self, entry: Entry) -> Entry | None:
        """A sample itself, or its substitute where it is unreadable; None where that is so too, or there is none."""
        if self._bad(entry) not in self._known:
            return entry
        other = substitute(entry)
        return None if other is None or self._bad(other) in self._known else other

    def fails(self, source: Entry, error: InputError, where: Place, tells: bool) -> None:
        """What stands in a place turned out unreadable. Of several places the first is told of."""
        bad = self._bad(source)
        tells = tells and self._first[bad] == where
        if tells or bad not in self.found:
            self.found[bad] = Found(source, error, where[0], tells)

    @property
    def problems(self) -> tuple[Bad, ...]:
        """The unreadable ones that the global batch meets, known and found."""
        return tuple(sorted({*(self._met() if self._known else ()), *self.found}))

    @functools.cached_property
    def _first(self) -> dict[Bad, Place]:
        """Where each sample that stands in a place does so first."""
        found: dict[Bad, Place] = {}
        for where, entry in places_of(self._packs):
            if (source := self.of(entry)) is not None:
                found.setdefault(self._bad(source), where)
        return found

    def _met(self) -> Iterator[Bad]:
        for _, entry in places_of(self._packs):
            if (bad := self._bad(entry)) in self._known:
                yield bad
                other = substitute(entry)
                if other is not None and (bad := self._bad(other)) in self._known:
                    yield bad

    def _bad(self, entry: Entry) -> Bad:
        return self._numbers[entry.set], entry.index


def places_of(packs: Sequence[Pack]) -> Iterator[tuple[Place, Entry]]:
    """Every sample of some packs with its place."""
    return (((pack.row, k), entry) for pack in packs for k, entry in enumerate(pack.entries))
