"""What a later stage reads: the conversations that it receives, as they stand by then."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .base import INGEST

if TYPE_CHECKING:
    from ...run import CurationRun


def conversations(run: CurationRun, stage: str, shard: str) -> Iterator[tuple[str, list[str]]]:
    """Key -> the messages' texts, for every sample of a shard that `stage` receives."""
    for batch in run.gather(stage, shard, {INGEST: ["messages"]}).to_batches(max_chunksize=1024):
        for row in batch.to_pylist():
            yield row["key"], [message["content"] for message in json.loads(row["messages"])]
