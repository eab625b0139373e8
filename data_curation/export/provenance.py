"""Provenance: for every exported sample its source row and what each stage found, one Parquet file per output shard.

Column names are flat (`filter.width`), so that pandas and DuckDB read a figure in one line. Nothing of the contents
stands here: a sample that is taken out of the shards must not live on beside them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from megavlm.platform.errors import InputError
from megavlm.platform.shards import ShardWriter, Written
from megavlm.platform.storage import write_atomic

from .layout import provenance_path

if TYPE_CHECKING:
    from ..run import CurationRun

# Of a kept sample they say nothing, or say it in the columns before the stages' own.
SAID_ALREADY = {"key", "keep", "reason", "detail", "sha256"}
CONTENT = {"caption", "metadata", "messages", "answer"}
_SHARD = b"megavlm.shard"


def decisions(run: CurationRun, stage: str, shard: str) -> pa.Table:
    """`STAGE.keep` and `STAGE.MEASUREMENT` of every stage before `stage`, one row per sample it receives of a shard."""
    names = [one.name for one in run.config.stages]
    columns: dict[str, Any] = {}
    for earlier in names[: names.index(stage)]:
        path = run.sidecar_path(earlier, shard)
        if not path.exists():  # a stage that says nothing about single samples
            continue
        wanted = [name for name in pq.read_schema(path).names if name not in SAID_ALREADY | CONTENT]
        told = run.gather(stage, shard, {earlier: wanted})
        columns[f"{earlier}.keep"] = pa.repeat(True, len(told))
        columns |= {f"{earlier}.{name}": told[name] for name in wanted}
    return pa.table(columns)


def with_origin(table: pa.Table, shard: str, origin: Mapping[str, pa.Array]) -> pa.Table:
    """The columns `origin`, `key` first among them, and the source shard, before those of `table`."""
    first, *rest = origin
    columns = {first: origin[first], "source_shard": pa.repeat(shard, len(table))}
    columns |= {name: origin[name] for name in rest} | {name: table[name] for name in table.column_names}
    return pa.table(columns)


def write_beside(export: Path, writer: ShardWriter, rows: pa.Table) -> list[str]:
    """The provenance of everything a writer wrote, `rows` being its samples in order; returns the shards' names."""
    done, names = 0, []
    for shard in writer.written:
        write_provenance(export, shard, rows.slice(done, shard.samples))
        done += shard.samples
        names.append(Path(shard.url).stem)
    if done != len(rows):
        raise InputError(f"{done} of {len(rows)} samples were there", fix="the raw shard changed meanwhile; run again")
    return names


def write_provenance(export: Path, shard: Written, rows: pa.Table) -> None:
    """Write a shard's rows, with what its writer knows of it."""
    facts = {"samples": shard.samples, "bytes": shard.bytes, "sha256": shard.sha256, "index_sha256": shard.index_sha256}
    buffer = io.BytesIO()
    table = rows.combine_chunks().replace_schema_metadata({_SHARD: json.dumps(facts)})
    pq.write_table(table, buffer, compression="zstd")
    write_atomic(provenance_path(export, Path(shard.url).stem), buffer.getvalue())


def shard_facts(schema: pa.Schema, where: Path) -> dict[str, Any]:
    """samples, bytes, sha256 and index_sha256 of the shard that a provenance file is about."""
    try:
        return dict(json.loads((schema.metadata or {})[_SHARD]))
    except (KeyError, ValueError):
        raise InputError("this file is no provenance of a shard", where=str(where)) from None
