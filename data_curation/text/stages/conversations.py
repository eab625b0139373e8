"""What a later stage reads: the conversations that it receives, as they stand by then."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .base import INGEST

if TYPE_CHECKING:
    from ...run import CurationRun

REFINE = "text_refine"


def conversations(run: CurationRun, stage: str, shard: str, columns: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """A row with key, messages and further columns of the ingest, for every sample of a shard that `stage` receives.

    The last answer is the refined one where that stage came before.
    """
    stages = list(run.config.stages.root)
    refined = REFINE in stages[: stages.index(stage)]
    wanted = {INGEST: ["messages", *columns]} | ({REFINE: ["answer"]} if refined else {})
    for batch in run.gather(stage, shard, wanted).to_batches(max_chunksize=1024):
        for row in batch.to_pylist():
            row["messages"] = json.loads(row["messages"])
            if refined:
                row["messages"][-1]["content"] = row.pop("answer")
            yield row
