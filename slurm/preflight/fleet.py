"""What a fleet of nodes has in common: medians of its figures, and what most of its nodes agree on."""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ..profile import Preflight
from .figures import COUNTS, FIGURES, FREE, TOLD_VERSIONS, VERSIONS

ENOUGH = 3  # nodes that have to have a figure before one of them can be held against the others
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Fleet:
    """The records of all nodes (None: no answer), and what is usual among them."""

    records: Mapping[str, Record | None]
    options: Preflight
    median: dict[str, float]
    usual: dict[str, Any]
    clock: float | None  # seconds, on the leading node's clock

    @classmethod
    def of(cls, records: Mapping[str, Record | None], options: Preflight) -> Fleet:
        """From what the nodes left."""
        there = [record for record in records.values() if record]
        median = {name: statistics.median(of) for name in FIGURES if (of := _all(there, "figures", name))}
        free = {name: statistics.median(of) for name in FREE if (of := _all(there, "free", name))}
        counts = {name: majority(_all(there, "counts", name)) for name in COUNTS}
        versions = {name: majority(_all(there, "versions", name)) for name in (*VERSIONS, *TOLD_VERSIONS)}
        usual = {name: value for name, value in (counts | versions | free).items() if value is not None}
        clocks = _all(there, "clock", "seconds")
        return cls(records, options, median, usual, statistics.median(clocks) if len(clocks) >= ENOUGH else None)

    def record(self, node: str) -> Record:
        """A node's record; empty when it gave no answer."""
        return self.records[node] or {}

    def slow(self, figure: str) -> set[str]:
        """The nodes that are too slow in one figure."""
        values = {node: self.record(node).get("figures", {}).get(figure) for node in self.records}
        return slow({node: value for node, value in values.items() if value is not None}, self.options.worst)


def slow(values: Mapping[str, float], worst: float) -> set[str]:
    """The nodes below `worst` times the median of all; nobody while fewer than ENOUGH have a value."""
    if len(values) < ENOUGH:
        return set()
    bar = worst * statistics.median(values.values())
    return {node for node, value in values.items() if value < bar}


def majority(values: Iterable[Any]) -> Any:
    """What more than half agree on; None where nothing is, or fewer than ENOUGH were asked."""
    values = list(values)
    value, times = Counter(values).most_common(1)[0] if values else (None, 0)
    return value if len(values) >= ENOUGH and 2 * times > len(values) else None


def _all(records: Iterable[Record], part: str, name: str) -> list[Any]:
    return [value for record in records if (value := record.get(part, {}).get(name)) is not None]
