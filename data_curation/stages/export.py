"""Export: the one time that image bytes are copied, untouched, into indexed shards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from megavlm.platform.shards import Sample, ShardWriter

from ..recaption.source import RECAPTION, caption_source
from ..source import image_field, read_samples
from .base import Outcome, Stage, Worker
from .demand import Demand, Size, Work

if TYPE_CHECKING:
    from ..run import CurationRun

# What the exported JSON says about a sample, and which sidecar knows it. Not every recipe clusters.
FACTS = {"filter": ["width", "height"], "assign": ["cluster"], "ingest": ["caption", "metadata"]}
BYTES_LISTED = 300  # of memory, for a sample in the list of all; measured with keys of nine digits
NEW_CAPTION = ("caption", "model", "prompt", "prompt_sha256", "parameters")


class Export(Stage):
    """RUN/export/TASK-*.tar with jpg (or png, ...), txt and json, in the source's order; task K is output shard K."""

    needs: ClassVar[tuple[str, ...]] = ("ingest", "filter")
    per_shard: ClassVar[bool] = False
    judges: ClassVar[bool] = False
    version: ClassVar[int] = 2

    samples_per_shard: PositiveInt = 1000

    def tasks(self, run: CurationRun) -> int:
        """One per output shard."""
        return -(-sum(len(run.survivors(self.name, shard.name)) for shard in run.shards) // self.samples_per_shard)

    def demand(self, size: Size) -> Demand:
        """Each worker holds the list of all samples (two names in a tuple, and a key of a Counter)."""
        tasks = max(1, -(-size.images // self.samples_per_shard))
        return Demand({"images": Work(size.images, tasks)}, rows=0, stated=BYTES_LISTED * size.images)

    def worker(self, run: CurationRun) -> Worker:
        """Task K reads only the source shards that its samples come from."""
        plan = [(shard.name, key) for shard in run.shards for key in run.survivors(self.name, shard.name).to_pylist()]
        times = Counter(key for _, key in plan)

        def work(task: int) -> Outcome:
            chosen = plan[task * self.samples_per_shard : (task + 1) * self.samples_per_shard]
            folder = run.folder.path("export")
            with ShardWriter(folder, prefix=prefix(task), samples_per_shard=self.samples_per_shard) as writer:
                for shard in dict.fromkeys(name for name, _ in chosen):
                    keys = {key for name, key in chosen if name == shard}
                    for sample, facts in self._samples(run, shard, keys):
                        # img2dataset's keys hold the shard's number; two merged sources may still share one
                        key = sample.key if times[sample.key] == 1 else f"{shard}-{sample.key}"
                        writer.write(key, exported(key, shard, sample, facts))
            return Outcome(len(chosen), len(chosen))

        return work

    def _samples(self, run: CurationRun, shard: str, keys: set[str]) -> Iterator[tuple[Sample, dict[str, Any]]]:
        known = {stage: columns for stage, columns in FACTS.items() if stage in run.config.stages.root}
        facts = {row["key"]: row for row in run.gather(self.name, shard, known).to_pylist()}
        for new in self._new_captions(run, shard):
            facts[new["key"]]["recaption"] = {name: new[name] for name in NEW_CAPTION}
        source = next(one for one in run.shards if one.name == shard)
        for sample in read_samples(source, keys):
            yield sample, facts[sample.key]

    def _new_captions(self, run: CurationRun, shard: str) -> list[dict[str, Any]]:
        """Of every survivor, where the recipe asks a model for captions."""
        source = caption_source(run, self.name)
        return run.gather(self.name, shard, {source: NEW_CAPTION}).to_pylist() if source == RECAPTION else []

    def finish(self, run: CurationRun) -> None:
        """Remove output shards of an earlier, larger selection."""
        valid = tuple(prefix(task) for task in range(self.tasks(run)))
        for path in run.folder.path("export").glob("*"):
            if not path.name.startswith(valid):
                path.unlink()


def prefix(task: int) -> str:
    """What the file names of output shard `task` start with."""
    return f"{task:06d}-"


def exported(key: str, shard: str, sample: Sample, facts: dict[str, Any]) -> dict[str, Any]:
    """The fields of an exported sample; the image's bytes are those of the source, the caption the newest there is.

    `messages` is what `megavlm data pack` trains on: the image and nothing else asks for the caption, as EVE and LLaVA
    pre-train ("plain" in their code).
    """
    field = image_field(sample.fields)
    assert field is not None  # ingest kept it because it has one
    new = facts.get("recaption")
    caption = new["caption"] if new else facts["caption"]
    metadata = {
        "key": key,
        "width": facts["width"],
        "height": facts["height"],
        "cluster": facts.get("cluster"),
        "source": {"shard": shard, "key": sample.key, "metadata": json.loads(facts["metadata"])},
        "messages": [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": caption}],
    }
    if new:
        asked = {name: new[name] for name in NEW_CAPTION[1:]}
        metadata["caption"] = asked | {"parameters": json.loads(new["parameters"]), "original": facts["caption"]}
    return {field: sample.fields[field], "txt": caption, "json": metadata}
