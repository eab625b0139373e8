"""What curation did to the planted samples: counts from its sidecars held against the crawl's truth."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from .plants import BOUNDED_COPIES, COPIES

Rows = dict[str, dict[str, Any]]


def score(raw: Path, run: Path) -> dict[str, Any]:
    """`curation` of the demo's figures.

    A planted copy is found when deduplication kept at most one of it and its original. A removal is right when the
    image it was held to be a duplicate of comes from the same original. Crops are reported by kind and count for
    precision, but not for recall: no perceptual hash is made to find them.
    """
    truth = json.loads((raw / "truth.json").read_text())
    judged = _rows(run, "deduplicate")
    found = {copy: _found(judged, copy, plant["of"]) for copy, plant in truth["copies"].items()}
    by_kind = {kind: _share([found[c] for c, p in truth["copies"].items() if p["kind"] == kind]) for kind in COPIES}
    bounded = [found[c] for c, p in truth["copies"].items() if p["kind"] in BOUNDED_COPIES]
    removed = [(key, row["duplicate_of"]) for key, row in judged.items() if not row["keep"]]
    return {
        "images": truth["images"],
        "kept": len(_rows(run, "select")) - sum(not row["keep"] for row in _rows(run, "select").values()),
        "duplicates_planted": len(truth["copies"]),
        "duplicate_recall": _share(bounded),
        "duplicate_precision": _share([_same_origin(truth, a, b) for a, b in removed]),
        "recall_by_kind": by_kind,
        "rejected": rejected(run),
        "planted_bad_files_named": bad_files_named(truth, run),
    }


def rejected(run: Path) -> dict[str, int]:
    """How many samples went for each reason."""
    reasons = pq.read_table(run / "rejected.parquet")["reason"].to_pylist()
    return dict(sorted(Counter(reasons).items()))


def bad_files_named(truth: dict[str, Any], run: Path) -> dict[str, bool]:
    """For each planted bad file: whether the run lists it with the reason it was planted for."""
    table = pq.read_table(run / "rejected.parquet", columns=["key", "reason"])
    named = set(zip(table["key"].to_pylist(), table["reason"].to_pylist(), strict=True))
    files = {plant["kind"]: (key, plant["reason"]) in named for key, plant in truth["bad"].items()}
    reasons = {reason for _, reason in named}
    return files | {kind: reason in reasons for kind, reason in truth["damaged"].items()}


def _rows(run: Path, stage: str) -> Rows:
    sidecars = sorted(path for path in (run / stage).glob("*.parquet") if path.stem.isdigit())
    return {row["key"]: row for path in sidecars for row in pq.read_table(path).to_pylist()}


def _found(judged: Rows, copy: str, original: str) -> bool:
    """Both must have reached deduplication: a pair of which one was lost before was not found by it."""
    both = [judged.get(copy), judged.get(original)]
    return all(row is not None for row in both) and sum(bool(row and row["keep"]) for row in both) <= 1


def _same_origin(truth: dict[str, Any], a: str, b: str | None) -> bool:
    origin = {copy: plant["of"] for copy, plant in truth["copies"].items()}
    return b is not None and origin.get(a, a) == origin.get(b, b)


def _share(outcomes: list[bool]) -> float:
    """Share of True; an empty list has none, which is said as 0."""
    return round(sum(outcomes) / len(outcomes), 4) if outcomes else 0.0
