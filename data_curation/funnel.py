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

from .fingerprint import stage_fingerprints, task_fingerprints
from .run import CurationRun

REJECTED = pa.schema(
    {"shard": pa.string(), "key": pa.string(), "stage": pa.string(), "reason": pa.string(), "detail": pa.string()}
)


def funnel(run: CurationRun) -> list[dict[str, Any]]:
    """Per stage: {"stage", "done", "in", "kept", "dropped": {reason: n}, "seconds"}, from valid entries only."""
    hashes = stage_fingerprints(run)
    return [_counts(run, stage.name, hashes[stage.name]) for stage in run.config.stages]


def settle(run: CurationRun, stage: str) -> None:
    """Merge what the workers of a stage wrote, and keep its counts; only the driver does this."""
    stage_hash = stage_fingerprints(run)[stage]
    run.ledger.compact(stage)
    if run.ledger.summary(stage, _valid_for(run, stage_hash)) is None:
        run.ledger.summarise(stage, _valid_for(run, stage_hash), _count(run, stage, stage_hash))


def _valid_for(run: CurationRun, stage_hash: str) -> dict[str, str]:
    """What a stage's counts depend on beside its ledger."""
    return {"stage": stage_hash, "shards": run.plan.digest}


def _counts(run: CurationRun, stage: str, stage_hash: str) -> dict[str, Any]:
    return run.ledger.summary(stage, _valid_for(run, stage_hash)) or _count(run, stage, stage_hash)


def _count(run: CurationRun, stage: str, stage_hash: str) -> dict[str, Any]:
    totals: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    for entry in valid_entries(run, stage, stage_hash):
        totals["done"] += 1
        for fact in ("received", "kept", "seconds"):
            totals[fact] += entry[fact]
        for reason, count in entry["dropped"].items():
            dropped[reason] += count
    return {
        "stage": stage,
        "done": totals["done"],
        "in": totals["received"],
        "kept": totals["kept"],
        "dropped": dict(sorted(dropped.items())),
        "seconds": round(float(totals["seconds"]), 2),
    }


def valid_entries(run: CurationRun, stage: str, stage_hash: str) -> Iterator[dict[str, Any]]:
    """What the ledger holds for the present configuration and shards, in the order of the tasks."""
    state = run.ledger.state(stage)
    shards = len(run.plan.names) if run.config.stages[stage].per_shard else None
    known = sorted(task for task in state if shards is None or task < shards)  # there may have been more shards once
    for task, fingerprint in task_fingerprints(run, stage, known, stage_hash).items():
        if state[task].fingerprint == fingerprint:
            yield state[task].entry()


def notes(run: CurationRun, stage: str) -> dict[str, Any]:
    """What a stage's first task noted: the model and its weights, iterations run, pairs found."""
    return next((entry["notes"] for entry in valid_entries(run, stage, stage_fingerprints(run)[stage])), {})


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
