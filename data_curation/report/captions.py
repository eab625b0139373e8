"""Captions: before and after recaptioning, and those that the checks dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from megavlm.platform.report import Case, Report

from .facts import facts
from .pictures import THUMBNAIL, Pictures
from .samples import examples
from .view import SHARDS_SEARCHED, Name, View, spread

SHOWN, SHOWN_PER_REASON = 6, 3
LETTERS = 900  # of a caption


def add_captions(view: View, pictures: Pictures, report: Report) -> None:
    """Examples of new captions, then of dropped ones by reason."""
    stages = [name for name in ("recaption", "check_captions") if view.has(name)]
    if not stages:
        return
    report.section("Captions", _intro(view))
    kept = _kept(view, stages[-1]) if "recaption" in stages else []
    gone = examples(view, "check_captions", SHOWN_PER_REASON) if "check_captions" in stages else {}
    names = [*kept, *((row["shard"], row["key"]) for rows in gone.values() for row in rows)]
    found = pictures.encoded(names)
    told = {stage: facts(view, stage, names, columns) for stage, columns in _columns(stages).items()}
    if kept:
        cases = [_case(name, told, found.get(name, b""), []) for name in kept]
        report.cases("Before and after", cases, THUMBNAIL)
    for reason, rows in gone.items():
        cases = [_dropped(row, told, found) for row in rows]
        count = view.line("check_captions")["dropped"].get(reason, len(rows))
        report.cases(f"check_captions: {reason}: {count:,}", cases, THUMBNAIL)
    pictures.tell(report, len(set(names)), len(found))


def _intro(view: View) -> str:
    if "recaption" not in view.stages.root:
        return "The original captions were checked; those that were dropped, by reason."
    options: Any = view.stages["recaption"]
    how = ", ".join(f"{name} {value}" for name, value in options.parameters.items())
    return f"New captions by {options.model}, asked with the prompt '{options.prompt}' ({how})."


def _columns(stages: Sequence[str]) -> dict[str, list[str]]:
    return {"ingest": ["caption"]} | ({"recaption": ["caption", "finish_reason"]} if "recaption" in stages else {})


def _kept(view: View, stage: str) -> list[Name]:
    """Samples at even distances that the last stage on captions kept."""
    found: list[Name] = []
    for shard in spread(view.shards(stage), SHARDS_SEARCHED):
        table = view.table(stage, shard, ["key", "keep"])
        keys = [] if table is None else _keys(table)
        found += [(shard, key) for key in spread(keys, SHOWN)]
    return spread(found, SHOWN)


def _keys(table: pa.Table) -> list[str]:
    return table.filter(table["keep"])["key"].to_pylist()


def _case(name: Name, told: dict[str, Any], picture: bytes, more: list[tuple[str, str]]) -> Case:
    captions = [(stage, rows.get(name)) for stage, rows in told.items()]
    labels = {"ingest": "before", "recaption": "after"}
    texts = [(labels[stage], _cut(row["caption"])) for stage, row in captions if row and row["caption"]]
    return Case([(picture, name[1])], [*texts, *more])


def _dropped(row: dict[str, Any], told: dict[str, Any], found: dict[Name, bytes]) -> Case:
    name = (row["shard"], row["key"])
    return _case(name, told, found.get(name, b""), [("why", f"{row['reason']}: {row['detail']}")])


def _cut(text: str) -> str:
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"
