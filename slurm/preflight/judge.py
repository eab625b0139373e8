"""Which nodes are not fit: each one's figures against the fleet's median. Reads files only; no torch.

Two kinds of reason. Absolute ones need no other node: no answer, a GPU that is missing or has uncorrected memory
errors, a folder that cannot be written. Relative ones hold a node against the others, and need three of them: with two,
nobody knows which is the odd one.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..profile import Preflight
from .figures import FIGURES
from .fleet import Fleet
from .rules import NOTES, RULES, answered

Record = dict[str, Any]
NUMBERS = ("figures", "counts", "free", "clock")
SHAPE: dict[str, type] = dict.fromkeys((*NUMBERS, "versions", "errors"), dict) | {"gpus": list}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """bad: node -> why it must not be used; notes: node -> what an admin may want to know, which excludes nobody.

    median: figure -> the fleet's; usual: count or version -> what most nodes have; rows: one per node, for tables.
    """

    bad: dict[str, str]
    notes: dict[str, str]
    median: dict[str, float]
    usual: dict[str, Any]
    rows: list[Record]


def judge(folder: Path, nodes: Sequence[str], options: Preflight) -> Verdict:
    """The verdict on `nodes` from what each left in `folder`; a node that left nothing gave no answer."""
    return judge_records(read_records(folder, nodes), options)


def read_records(folder: Path, nodes: Sequence[str]) -> dict[str, Record | None]:
    """Node -> its record, or None where there is no readable one."""
    return {node: _read(folder / f"{node}.json") for node in nodes}


def judge_records(records: Mapping[str, Record | None], options: Preflight) -> Verdict:
    """The same for records at hand. The order of the nodes makes no difference."""
    fleet = Fleet.of(records, options)
    bad = {node: "; ".join(why) for node in records if (why := [w for rule in RULES for w in rule(node, fleet)])}
    notes = {node: "; ".join(why) for node in records if (why := [w for rule in NOTES for w in rule(node, fleet)])}
    rows = [_row(node, record, bad.get(node), notes.get(node)) for node, record in records.items()]
    return Verdict(bad, notes, fleet.median, fleet.usual, rows)


def _row(node: str, record: Record | None, bad: str | None, note: str | None) -> Record:
    record = record or {}
    figures = {name: record.get("figures", {}).get(name) for name in FIGURES}
    counts, versions = record.get("counts", {}), record.get("versions", {})
    answer = answered(record)
    return {"node": node, "answered": answer, "ok": bad is None, "reason": bad, "note": note, "figures": figures} | {
        "counts": counts,
        "versions": versions,
        "clock_seconds": record.get("clock", {}).get("seconds"),
    }


def _read(path: Path) -> Record | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and _sound(found) else None


def _sound(record: Record) -> bool:
    """Whether a record has the shape that node.py gives it: one file that is damaged must not stop the verdict."""
    shaped = all(isinstance(record.get(part, kind()), kind) for part, kind in SHAPE.items())
    values = (
        [value for part in NUMBERS for value in record.get(part, {}).values()]
        if shaped and "figures" in record
        else [""]
    )
    return all(isinstance(value, (int, float)) for value in values)
