"""What a task's result depends on, as a short hash: the same fingerprint promises the same result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from .run import CurationRun


def stage_fingerprints(run: CurationRun) -> dict[str, str]:
    """Per stage: a hash over the seed, its options and version, and those of every stage before it.

    A stage that looks at all shards at once also depends on the list of shards.
    """
    out, before = {}, _hash({"seed": run.seed})
    for stage in run.config.stages:
        options, shards = stage.decisive(), None if stage.per_shard else run.plan.digest
        parts = {"before": before, "name": stage.name, "version": stage.version, "options": options, "shards": shards}
        out[stage.name] = before = _hash(parts)
    return out


def task_fingerprints(
    run: CurationRun, stage: str, tasks: Iterable[int], stage_hash: str | None = None
) -> dict[int, str]:
    """Task -> the fingerprint with which it counts as done, in the order given.

    A per-shard task depends on its own shard only, so a changed shard redoes nothing else.
    """
    stage_hash = stage_hash or stage_fingerprints(run)[stage]
    own = run.plan.prints if run.config.stages[stage].per_shard else None
    return {task: f"{stage_hash}-{own[task] if own else task}" for task in tasks}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
