"""The files of a pack manifest, and how a row's place is computed from its number."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

FORMAT = 3
ROWS_PER_PART = 1 << 18  # of one file
ROWS_PER_BLOCK = 1 << 12  # of one Arrow record batch in it

HEAD, SETS, BATCHES, REJECTED = "manifest.json", "sets.json", "batches.i64", "rejected.parquet"

ROW = pa.schema([
    ("set", pa.list_(pa.int16())), ("index", pa.list_(pa.int64())), ("epoch", pa.list_(pa.int32())),
    ("tokens", pa.list_(pa.int32())), ("targets", pa.list_(pa.int32())), ("weight", pa.list_(pa.float32())),
    ("images", pa.list_(pa.list_(pa.list_(pa.int16(), 3)))), ("substitute", pa.list_(pa.int64())),
])  # fmt: skip

LEFT_OUT = pa.schema([
    ("set", pa.string()), ("index", pa.int64()), ("key", pa.string()), ("reason", pa.string()), ("detail", pa.string())
])  # fmt: skip


def part_path(folder: Path, part: int) -> Path:
    """Where rows part * ROWS_PER_PART and on stand."""
    return folder / "rows" / f"{part:06d}.arrow"


def shards_path(folder: Path, number: int) -> Path:
    """Where the shards of a set are listed, with how many samples each had."""
    return folder / "shards" / f"{number:04d}.arrow"


def building(path: Path) -> Path:
    """Where the manifest that is to appear at `path` is made."""
    return path.parent / f".{path.name}.building"
