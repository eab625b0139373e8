"""What sidecars say of a few samples, for their captions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from .view import Name, View


def facts(view: View, stage: str, names: Iterable[Name], columns: Sequence[str]) -> dict[Name, dict[str, Any]]:
    """Columns of a stage's sidecars on these samples; of a repeated key the row that was kept, if any was."""
    wanted: dict[str, list[str]] = {}
    for shard, key in names:
        wanted.setdefault(shard, []).append(key)
    found: dict[Name, dict[str, Any]] = {}
    for shard, keys in wanted.items():
        table = view.table(stage, shard, ["key", "keep", *columns])
        if table is None:
            continue
        for row in table.filter(pc.is_in(table["key"], value_set=pa.array(keys))).to_pylist():
            if row["keep"] or (shard, row["key"]) not in found:
                found[shard, row["key"]] = row
    return found


def size_of(row: dict[str, Any] | None) -> str:
    """ "640 x 480 px, 52 kB" of what the filter measured; empty where nothing is known."""
    if not row or row.get("width") is None:
        return ""
    size = f"{row['bytes'] / 1000:,.0f} kB" if row["bytes"] >= 1000 else f"{row['bytes']} bytes"
    return f"{row['width']:,} x {row['height']:,} px, {size}"
