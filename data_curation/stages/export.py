"""Export: the one time that image bytes are copied, untouched, into indexed shards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import PositiveInt

from megavlm.platform.errors import InputError
from megavlm.platform.shards import Sample, ShardWriter

from ..export.complete import begin, blocklist, complete, outcome
from ..export.division import Division, Piece
from ..export.provenance import decisions, with_origin
from ..recaption.source import RECAPTION, caption_source
from ..recaption.words import Caption
from ..source import image_field, read_samples
from .base import Outcome, Stage, Worker
from .demand import Demand, Size, Work

if TYPE_CHECKING:
    from ..removal.blocklist import Blocklist
    from ..run import CurationRun

# What the exported JSON says about a sample, and which sidecar knows it. Not every recipe clusters.
FACTS = {"filter": ["width", "height", "sha256"], "assign": ["cluster"], "ingest": ["caption", "metadata"]}
BYTES_HELD = 9  # of memory, for a sample, while equal keys are looked for
NEW_CAPTION = ("caption", "model", "prompt", "prompt_sha256", "parameters")
Facts = dict[str, Any]


class Export(Stage):
    """RUN/export/TASK-*.tar with jpg (or png, ...), txt and json, in the source's order; task K is output shard K.

    Beside them provenance, statistics and the manifest (data_curation/export). What was taken down (`data remove`) is
    left out of its shard and moves no other sample.
    """

    needs: ClassVar[tuple[str, ...]] = ("ingest", "filter")
    per_shard: ClassVar[bool] = False
    judges: ClassVar[bool] = False
    exports: ClassVar[bool] = True
    version: ClassVar[int] = 3

    samples_per_shard: PositiveInt = 1000

    def tasks(self, run: CurationRun) -> int:
        """One per output shard."""
        return Division(run, self.name, self.samples_per_shard).tasks

    def demand(self, size: Size) -> Demand:
        """Each worker holds a hash of every sample's key."""
        tasks = max(1, -(-size.images // self.samples_per_shard))
        return Demand({"images": Work(size.images, tasks)}, rows=0, stated=BYTES_HELD * size.images)

    def worker(self, run: CurationRun) -> Worker:
        """Task K reads only the source shards that its samples come from."""
        division, blocked = Division(run, self.name, self.samples_per_shard), blocklist(run)

        def work(task: int) -> Outcome:
            begin(run)
            pieces = division.pieces(task)
            with ShardWriter(run.folder.path("export"), prefix(task), self.samples_per_shard) as writer:
                rows = [self._write(run, piece, division.shared, blocked, writer) for piece in pieces]
            return outcome(run, writer, pa.concat_tables(rows), received=sum(len(piece) for piece in pieces))

        return work

    def _write(
        self, run: CurationRun, piece: Piece, shared: frozenset[str], blocked: Blocklist, writer: ShardWriter
    ) -> pa.Table:
        """Write a piece's samples; returns their provenance, in the order of the tar."""
        shard = piece.shard.name
        facts = self._facts(run, piece)
        names = {key: key if key not in shared else f"{shard}-{key}" for key in facts}
        table = decisions(run, self.name, shard).slice(piece.start, len(piece))
        table = blocked.allowed(with_origin(table, shard, _origin(names, facts)))
        keys = table["source_key"].to_pylist()
        written = []
        for sample in read_samples(piece.shard, keys):
            key = names[sample.key]
            writer.write(key, exported(key, shard, sample, facts[sample.key]))
            written.append(sample.key)
        if len(written) < len(keys):
            what = f"shard {shard} lacks {len(keys) - len(written)} samples"
            raise InputError(what, fix="the raw shard changed during the run; run again")
        return table.take(pc.index_in(pa.array(written, pa.string()), value_set=table["source_key"].combine_chunks()))

    def _facts(self, run: CurationRun, piece: Piece) -> dict[str, Facts]:
        """Key -> what is known of each sample of a piece."""
        known = {stage: columns for stage, columns in FACTS.items() if stage in run.config.stages.root}
        facts = {row["key"]: row for row in piece.rows(run.gather(self.name, piece.shard.name, known))}
        for new in self._new_captions(run, piece):
            facts[new["key"]]["recaption"] = {name: new[name] for name in NEW_CAPTION}
        return facts

    def _new_captions(self, run: CurationRun, piece: Piece) -> Iterator[Facts]:
        """Of every sample, where the recipe asks a model for captions."""
        if caption_source(run, self.name) == RECAPTION:
            yield from piece.rows(run.gather(self.name, piece.shard.name, {RECAPTION: NEW_CAPTION}))

    def finish(self, run: CurationRun) -> None:
        """Remove what an earlier, larger selection left, and describe what there is."""
        complete(run, self.name)


def prefix(task: int) -> str:
    """What the file names of output shard `task` start with."""
    return f"{task:06d}-"


def _origin(names: dict[str, str], facts: dict[str, Facts]) -> dict[str, pa.Array]:
    """The columns of provenance that no stage measured, for samples with their exported `names`."""
    urls = [url_of(json.loads(one["metadata"])) for one in facts.values()]
    new = [one.get("recaption") for one in facts.values()]
    captions = [said["caption"] if said else one["caption"] for one, said in zip(facts.values(), new, strict=True)]
    return {
        "key": pa.array(names.values(), pa.string()),
        "source_key": pa.array(names, pa.string()),
        "url": pa.array(urls, pa.string()),
        "sha256": pa.array([one["sha256"] for one in facts.values()], pa.string()),
        "caption_words": pa.array([len(Caption(caption).words) for caption in captions], pa.int32()),
        "caption_origin": pa.array([said["model"] if said else "source" for said in new], pa.string()),
    }


def url_of(metadata: dict[str, Any]) -> str | None:
    """Where an image came from; in an export that was curated again, its first source's word."""
    found = metadata.get("url") or metadata.get("URL")
    if isinstance(found, str):
        return found
    source = metadata.get("source")
    before = source.get("metadata") if isinstance(source, dict) else None
    return url_of(before) if isinstance(before, dict) else None


def exported(key: str, shard: str, sample: Sample, facts: Facts) -> dict[str, Any]:
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
