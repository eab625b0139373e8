"""Statistics of an export, added up from its provenance shard by shard: memory follows the bins, not the samples.

Bins are fixed, 64 to a doubling (cosines: 1,000 to a unit), so a quantile is within about one per cent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..distributions import Histogram, coarser, linear, octaves, whole_numbers

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
BINS_TOLD = 40
SIDES = whole_numbers(1 << 17, 64)
NUMBERS = whole_numbers(1 << 20, 64)
BYTES = octaves(0, 40, 64)


def _aspect(table: pa.Table) -> np.ndarray:
    return _floats(table["filter.width"]) / _floats(table["filter.height"])


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.cast(column, pa.float64()).to_numpy(), np.float64)  # null becomes NaN


def _of(name: str) -> Callable[[pa.Table], np.ndarray]:
    return lambda table: _floats(table[name])


# name -> (columns it needs, edges of its bins, its values)
MEASURES: dict[str, tuple[tuple[str, ...], np.ndarray, Callable[[pa.Table], np.ndarray]]] = {
    "width": (("filter.width",), SIDES, _of("filter.width")),
    "height": (("filter.height",), SIDES, _of("filter.height")),
    "aspect": (("filter.width", "filter.height"), octaves(-8, 8, 64), _aspect),
    "bytes": (("filter.bytes",), BYTES, _of("filter.bytes")),
    "caption_words": (("caption_words",), NUMBERS, _of("caption_words")),
    "cosine_to_centroid": (("assign.cosine",), linear(-1, 1, 2000), _of("assign.cosine")),
    "turns": (("text_ingest.turns",), NUMBERS, _of("text_ingest.turns")),
    "characters": (("text_ingest.characters",), BYTES, _of("text_ingest.characters")),
}
TALLIES = {"formats": "filter.format", "caption_origins": "caption_origin"}
GROUPS = ("source_shard", "set")
SUMS = {"bytes": "filter.bytes", "turns": "text_ingest.turns", "characters": "text_ingest.characters"}
CLUSTER = "assign.cluster"
COLUMNS = sorted(
    {column for columns, _, _ in MEASURES.values() for column in columns}
    | {*TALLIES.values(), *GROUPS, *SUMS.values(), CLUSTER}
)


class Statistics:
    """Takes in one provenance table after the other; columns that an export has not are left out."""

    def __init__(self) -> None:
        self.samples = 0
        self._histograms: dict[str, Histogram] = {}
        self._tallies: dict[str, Counter[str]] = {}
        self._groups: dict[str, dict[str, Counter[str]]] = {}
        self._clusters = np.zeros(0, np.int64)  # samples of each

    def add(self, table: pa.Table) -> None:
        """Count a shard's samples."""
        has = set(table.column_names)
        self.samples += len(table)
        for name, (columns, edges, values) in MEASURES.items():
            if has.issuperset(columns):
                self._histograms.setdefault(name, Histogram(edges)).add(values(table))
        for name, column in TALLIES.items():
            if column in has:
                self._tallies.setdefault(name, Counter()).update(_counts(table[column]))
        for group in GROUPS:
            if group in has:
                self._add_group(table, group, {name: column for name, column in SUMS.items() if column in has})
        if CLUSTER in has:
            self._add_clusters(table[CLUSTER].to_numpy())

    def _add_group(self, table: pa.Table, group: str, sums: dict[str, str]) -> None:
        columns = {"group": table[group]} | {name: table[column] for name, column in sums.items()}
        asked = [("group", "count"), *((name, "sum") for name in sums)]
        for row in pa.table(columns).group_by("group").aggregate(asked).to_pylist():
            found = self._groups.setdefault(group, {}).setdefault(row["group"], Counter())
            found.update({"samples": row["group_count"]} | {name: row[f"{name}_sum"] or 0 for name in sums})

    def _add_clusters(self, clusters: np.ndarray) -> None:
        counts = np.bincount(clusters, minlength=len(self._clusters))
        counts[: len(self._clusters)] += self._clusters
        self._clusters = counts

    def told(self) -> dict[str, Any]:
        """As JSON: samples, distributions, counts, and the samples of every source shard and set."""
        out: dict[str, Any] = {"samples": self.samples}
        out["distributions"] = {name: distribution(found) for name, found in self._histograms.items()}
        if len(self._clusters):
            sizes = Histogram(NUMBERS)
            sizes.add(self._clusters[self._clusters > 0].astype(np.float64))
            out["distributions"]["cluster_size"] = distribution(sizes)
        out |= {name: dict(sorted(found.items())) for name, found in self._tallies.items()}
        for group, members in self._groups.items():
            out[f"{group}s"] = {name: dict(found) for name, found in sorted(members.items())}
        return out


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {row["values"]: row["counts"] for row in pc.value_counts(column.combine_chunks()).to_pylist()}


def distribution(found: Histogram) -> dict[str, Any]:
    """A histogram as JSON: how many values, the extremes, quantiles, and at most BINS_TOLD bins."""
    out: dict[str, Any] = {"count": found.total + found.outside, "missing": found.missing}
    if not out["count"]:
        return out
    edges, rows = coarser(found.edges, found.counts[None], BINS_TOLD)
    return out | {
        "least": _short(found.low),
        "greatest": _short(found.high),
        "quantiles": {f"{share:g}": _short(found.quantile(share)) for share in QUANTILES} if found.total else {},
        "histogram": {"edges": [_short(edge) for edge in edges], "counts": rows[0].tolist()},
    }


def _short(value: float) -> float:
    """Six figures: more than the bins tell."""
    return float(f"{value:.6g}")
