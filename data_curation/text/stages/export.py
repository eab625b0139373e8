"""Text export: the survivors into indexed shards, and what every set gave and lost."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from megavlm.platform.shards import ShardWriter
from megavlm.platform.storage import write_atomic

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

    `source` says where the sample is from: set, format, raw shard, row, and what the row itself says.
    RUN/statistics.json holds per set: rows, samples exported, their turns and characters (before any refinement), and
    dropped by stage and reason.
    """

    needs: ClassVar[tuple[str, ...]] = ("text_ingest",)
    judges: ClassVar[bool] = False

    samples_per_shard: PositiveInt = 10_000

    def worker(self, run: CurationRun) -> Worker:
        """Task K writes the survivors of raw shard K."""
        source = text_source(run)

        def work(task: int) -> Outcome:
            shard = run.shards[task]
            written = 0
            with ShardWriter(run.folder.path("export"), f"{shard.name}-", self.samples_per_shard) as writer:
                for row in conversations(run, self.name, shard.name, COLUMNS):
                    writer.write(row["key"], {"json": exported(row, source, shard)})
                    written += 1
            return Outcome(written, written)

        return work

    def finish(self, run: CurationRun) -> None:
        """Remove shards of an earlier, larger selection, and count."""
        counts = {shard.name: len(run.survivors(self.name, shard.name)) for shard in run.shards}
        tars = {name: -(-count // self.samples_per_shard) for name, count in counts.items()}
        valid = {f"{name}-{number:05d}" for name, total in tars.items() for number in range(total)}
        for path in run.folder.path("export").glob("*"):
            if re.sub(r"(\.index\.parquet|\.tar)$", "", path.name) not in valid:
                path.unlink()
        text = json.dumps(statistics(run, self.name), indent=2)
        write_atomic(run.folder.path("statistics.json"), text.encode())


def exported(row: dict[str, Any], source: TextSets, shard: Shard) -> dict[str, Any]:
    """What the `json` of a sample holds."""
    text_set = source.set_of(shard)
    origin = {"set": text_set, "format": source.sets[text_set], "shard": shard.name, "row": row["row"]}
    return {"messages": row["messages"], "id": row["id"], "source": origin | {"origin": row["source"]}}


def statistics(run: CurationRun, stage: str) -> dict[str, dict[str, Any]]:
    """Set -> rows, samples, turns, characters, dropped {"STAGE/REASON": n}; `stage` is the export's name."""
    source = text_source(run)
    found: dict[str, Counter[str]] = {name: Counter() for name in source.sets}
    dropped: dict[str, Counter[str]] = {name: Counter() for name in source.sets}
    for shard in run.shards:
        text_set = source.set_of(shard)
        kept = run.gather(stage, shard.name, {INGEST: ["turns", "characters"]})
        found[text_set].update({name: sum(kept[name].to_pylist()) for name in ("turns", "characters")})
        found[text_set].update(samples=len(kept), rows=len(run.sidecar(INGEST, shard.name, ["key"])))
        for judge in run.config.stages:
            if judge.judges:
                reasons = run.sidecar(judge.name, shard.name, ["reason"])["reason"].to_pylist()
                dropped[text_set].update(f"{judge.name}/{reason}" for reason in reasons if reason)
    return {name: {**found[name], "dropped": dict(sorted(dropped[name].items()))} for name in found}
