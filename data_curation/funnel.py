"""The funnel and the list of the rejected: what came in, what stayed, what went and why, from ledger and sidecars."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from megavlm.platform.storage import write_atomic

from .fingerprint import stage_fingerprints, task_fingerprint
from .run import CurationRun

REJECTED = pa.schema(
    {"shard": pa.string(), "key": pa.string(), "stage": pa.string(), "reason": pa.string(), "detail": pa.string()}
)


def funnel(run: CurationRun) -> list[dict[str, Any]]:
    """Per stage: {"stage", "done", "in", "kept", "dropped": {reason: n}, "seconds"}, from valid markers only."""
    hashes = stage_fingerprints(run)
    return [_line(run, stage.name, hashes[stage.name]) for stage in run.config.stages]


def _line(run: CurationRun, stage: str, stage_hash: str) -> dict[str, Any]:
    entries = valid_entries(run, stage, stage_hash)
    dropped: Counter[str] = sum((Counter(entry["dropped"]) for entry in entries), Counter())
    return {
        "stage": stage,
        "done": len(entries),
        "in": sum(entry["received"] for entry in entries),
        "kept": sum(entry["kept"] for entry in entries),
        "dropped": dict(sorted(dropped.items())),
        "seconds": round(sum(entry["seconds"] for entry in entries), 2),
    }


def valid_entries(run: CurationRun, stage: str, stage_hash: str | None = None) -> list[dict[str, Any]]:
    """Markers that belong to the present configuration and shards; those of an earlier one are passed over."""
    stage_hash = stage_hash or stage_fingerprints(run)[stage]
    per_shard = run.config.stages[stage].per_shard
    found = []
    for task, entry in run.ledger.entries(stage):
        known = task < len(run.shards) or not per_shard
        if known and entry.get("fingerprint") == task_fingerprint(run, stage, task, stage_hash):
            found.append(entry)
    return found


def notes(run: CurationRun, stage: str) -> dict[str, Any]:
    """What a stage's first task noted: the model and its weights, iterations run, pairs found."""
    return next((entry["notes"] for entry in valid_entries(run, stage)), {})


def write_funnel(run: CurationRun) -> None:
    """RUN/funnel.json"""
    write_atomic(run.folder.path("funnel.json"), json.dumps(funnel(run), indent=2).encode())


def rejected(run: CurationRun) -> Iterator[pa.Table]:
    """Every dropped sample with stage, reason and detail, one table per stage and shard."""
    for stage in run.config.stages:
        for shard in run.shards if stage.judges else []:
            table = run.sidecar(stage.name, shard.name, ["key", "keep", "reason", "detail"])
            table = table.filter(pc.invert(table["keep"]))
            names = {"shard": pa.repeat(shard.name, len(table)), "stage": pa.repeat(stage.name, len(table))}
            yield pa.table(names | {name: table[name] for name in ("key", "reason", "detail")}).select(REJECTED.names)


def write_rejected(run: CurationRun) -> None:
    """RUN/rejected.parquet"""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, REJECTED) as writer:
        for table in rejected(run):
            writer.write_table(table)
    write_atomic(run.folder.path("rejected.parquet"), buffer.getvalue())
