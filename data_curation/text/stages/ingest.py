"""Text ingest: every row of every set becomes a conversation, or is named with the reason why it cannot."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ...stages.base import ShardStage
from ...stages.sidecar import judging_schema
from ..sample import BadRow, TextSample
from ..source import Placed
from ..words import digest
from .base import Checked, table_of, text_source

if TYPE_CHECKING:
    from ...run import CurationRun

SCHEMA = judging_schema(
    row=pa.int64(),  # its number in the file
    id=pa.string(),  # the row's own, null where it has none
    source=pa.string(),  # what the row says that it was made from
    messages=pa.string(),  # JSON [{"role", "content"}, ...]
    turns=pa.int32(),
    characters=pa.int64(),
    digest=pa.uint64(),  # equal where roles and words are
)


class TextIngest(ShardStage):
    """Reads one file per task. Rows and reasons: `text.sample`, `text.reading`, and the set's format."""

    def judge(self, run: CurationRun) -> Callable[[str], tuple[pa.Table, dict[str, Any]]]:
        """Before the first row, asks the later stages whether what they read is there."""
        source = text_source(run)
        for stage in run.config.stages:
            if isinstance(stage, Checked):
                stage.check_inputs()
        shards = {shard.name: shard for shard in run.shards}

        def judge(name: str) -> tuple[pa.Table, dict[str, Any]]:
            shard = shards[name]
            notes = {"set": source.set_of(shard), "format": source.sets[source.set_of(shard)]}
            return table_of(map(_row, source.placed(shard)), SCHEMA), notes

        return judge


def _row(placed: Placed) -> dict[str, Any]:
    facts = _refusal(placed.content) if isinstance(placed.content, BadRow) else _facts(placed.content)
    return {"key": placed.key, "row": placed.row, **facts}


def _refusal(bad: BadRow) -> dict[str, Any]:
    # a detail may quote what is no Unicode
    return {"keep": False, "reason": bad.reason, "detail": bad.detail.encode("utf-8", "replace").decode()}


def _facts(sample: TextSample) -> dict[str, Any]:
    contents = [message["content"] for message in sample.messages]
    roles = [message["role"] for message in sample.messages]
    return {
        "keep": True,
        "id": sample.id,
        "source": sample.source,
        "messages": json.dumps(sample.messages, ensure_ascii=False),
        "turns": len(contents),
        "characters": sum(map(len, contents)),
        "digest": digest([part for pair in zip(roles, contents, strict=True) for part in pair]),
    }
