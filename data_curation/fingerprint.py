"""What a task's result depends on, as a short hash: the same fingerprint promises the same result."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from .run import CurationRun


def stage_fingerprints(run: CurationRun) -> dict[str, str]:
    """Per stage: a hash over the seed, its options and version, and those of every stage before it.

    A stage that looks at all shards at once also depends on the list of shards.
    """
    out, before = {}, _hash({"seed": run.seed})
    for stage in run.config.stages:
        options = stage.model_dump(mode="json")
        shards = None if stage.per_shard else [[shard.name, shard.size] for shard in run.shards]
        parts = {"before": before, "name": stage.name, "version": stage.version, "options": options, "shards": shards}
        out[stage.name] = before = _hash(parts)
    return out


def task_fingerprint(run: CurationRun, stage: str, task: int, stage_hash: str) -> str:
    """A per-shard task depends on its own shard only, so a changed shard redoes nothing else."""
    if not run.config.stages[stage].per_shard:
        return _hash({"stage": stage_hash, "task": task})
    shard = run.shards[task]
    return _hash({"stage": stage_hash, "shard": [shard.name, shard.url, shard.size]})


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
