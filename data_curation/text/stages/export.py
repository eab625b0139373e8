"""Text export: the survivors into indexed shards, and what every set gave and lost."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
from pydantic import PositiveInt

from megavlm.platform.shards import ShardWriter

from ...export.complete import begin, blocklist, complete, outcome
from ...export.provenance import decisions, with_origin
from ...source import Shard
from ...stages.base import Outcome, Stage, Worker
from ..source import TextSets
from .base import INGEST, text_source
from .conversations import conversations

if TYPE_CHECKING:
    from ...run import CurationRun

COLUMNS = ("row", "id", "source")


class TextExport(Stage):
    """RUN/export/SHARD-NNNNN.tar: per sample one `json` with messages, id and source, in the source's order.

    `source` says where the sample is from: set, format, raw shard, row, and what the row itself says. Beside them
    provenance, statistics and the manifest (data_curation/export); turns and characters are those before any
    refinement. What was taken down (`data remove`) is left out.
    """

    needs: ClassVar[tuple[str, ...]] = ("text_ingest",)
    judges: ClassVar[bool] = False
    exports: ClassVar[bool] = True
    version: ClassVar[int] = 2

    samples_per_shard: PositiveInt = 10_000

    def worker(self, run: CurationRun) -> Worker:
        """Task K writes the survivors of raw shard K."""
        source, blocked = text_source(run), blocklist(run)

        def work(task: int) -> Outcome:
            begin(run)
            shard = run.shards[task]
            keys = run.survivors(self.name, shard.name)
            origin = {"key": keys, "source_key": keys, "set": pa.repeat(source.set_of(shard), len(keys))}
            rows = with_origin(decisions(run, self.name, shard.name), shard.name, origin)
            rows, received = blocked.allowed(rows), len(rows)
            with ShardWriter(run.folder.path("export"), f"{shard.name}-", self.samples_per_shard) as writer:
                allowed = set(rows["key"].to_pylist()) if received > len(rows) else None
                for row in conversations(run, self.name, shard.name, COLUMNS):
                    if allowed is None or row["key"] in allowed:
                        writer.write(row["key"], {"json": exported(row, source, shard)})
            return outcome(run, writer, rows, received)

        return work

    def finish(self, run: CurationRun) -> None:
        """Remove what an earlier, larger selection left, and describe what there is."""
        complete(run, self.name, lambda: set_facts(run))


def exported(row: dict[str, Any], source: TextSets, shard: Shard) -> dict[str, Any]:
    """What the `json` of a sample holds."""
    text_set = source.set_of(shard)
    origin = {"set": text_set, "format": source.sets[text_set], "shard": shard.name, "row": row["row"]}
    return {"messages": row["messages"], "id": row["id"], "source": origin | {"origin": row["source"]}}


def set_facts(run: CurationRun) -> dict[str, dict[str, Any]]:
    """Set -> its format, place and licence, rows read, and dropped {"STAGE/REASON": n}."""
    source = text_source(run)
    rows: Counter[str] = Counter()
    dropped: dict[str, Counter[str]] = {name: Counter() for name in source.sets}
    for shard in run.shards:
        text_set = source.set_of(shard)
        rows[text_set] += len(run.sidecar(INGEST, shard.name, ["keep"]))
        for judge in run.config.stages:
            if judge.judges:
                reasons = run.sidecar(judge.name, shard.name, ["reason"])["reason"].to_pylist()
                dropped[text_set].update(f"{judge.name}/{reason}" for reason in reasons if reason)
    return {
        name: {"format": kind, **source.about_set(name).model_dump(), "rows": rows[name]}
        | {"dropped": dict(sorted(dropped[name].items()))}
        for name, kind in source.sets.items()
    }
