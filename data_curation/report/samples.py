"""Examples of dropped samples, drawn from the shards that are measured; rare reasons are found as well."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .view import SHARDS_SEARCHED, View, spread

REASONS = 20


def examples(view: View, stage: str, count: int, columns: Sequence[str] = ()) -> dict[str, list[dict[str, Any]]]:
    """Reason -> at most `count` samples that a stage dropped for it: rows with shard, key, detail and `columns`.

    Of more than REASONS reasons (a source may bring its own) the most frequent.
    Drawn at random by the run's seed, first from the shards whose pictures a report can read.
    """
    near = set(spread(view.shards(stage), SHARDS_SEARCHED))
    known = {reason for reason, _ in Counter(view.line(stage)["dropped"]).most_common(REASONS)}
    best: dict[str, pa.Table] = {}
    for shard, table in view.tables(stage, ["key", "keep", "reason", "detail", *columns]):
        gone = table.filter(pc.invert(table["keep"]))
        order = np.random.default_rng([view.run.seed, zlib.crc32(shard.encode())]).random(len(gone))
        gone = gone.append_column("shard", pa.repeat(shard, len(gone)))
        gone = gone.append_column("order", pa.array(order + (shard not in near)))
        for reason in known.intersection(pc.unique(gone["reason"]).to_pylist()):
            part = gone.filter(pc.equal(gone["reason"], reason))
            whole = pa.concat_tables([best[reason], part]) if reason in best else part
            best[reason] = whole.sort_by("order")[:count]
    return {reason: best[reason].drop_columns("order").to_pylist() for reason in sorted(best)}
