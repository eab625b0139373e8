"""Decontaminate: drop images that evaluation sets hold, by equal bytes or by an equal look."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import BeforeValidator, Field, PositiveInt, SerializeAsAny

from megavlm.platform.errors import ConfigError

from ..evaluation_images import Known, hash_set, read_known, write_known
from ..sources.base import Source
from ..sources.parse import parse_source
from .base import Outcome, Stage, Worker
from .demand import Demand, Size, Work
from .sidecar import judging_schema

if TYPE_CHECKING:
    from ..run import CurationRun

WANTED = {"filter": ["sha256", "pdq"]}
SCHEMA = judging_schema(
    distance=pa.int16(),  # differing bits of the nearest evaluation image's PDQ, null when none was compared
)


def _sources(value: object) -> dict[str, Source]:
    if not isinstance(value, dict) or not value:
        fix = "against: {mmbench: {kind: folder, path: FOLDER}}"
        raise ConfigError("name the evaluation sets", where="against", fix=fix)
    return {str(name): _source(str(name), options) for name, options in value.items()}


def _source(name: str, options: object) -> Source:
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise ConfigError(f"'{name}' is no name of a set", where="against", fix="letters, digits, - _ .")
    if isinstance(options, Source):
        return options
    folder = {"kind": "folder", "path": options} if isinstance(options, str) else options
    return parse_source(folder, f"against.{name}")


class Decontaminate(Stage):
    """Each set is hashed once by a task of its own, then each shard is compared with all of them.

    RUN/decontaminate/sets/NAME.parquet holds a set's hashes. The filter stage has taken those of the samples.
    """

    needs: ClassVar[tuple[str, ...]] = ("filter",)
    per_shard: ClassVar[bool] = False
    from_sidecars: ClassVar[bool] = True
    measures_by: ClassVar[tuple[str, ...]] = ("against", "max_pixels")

    # set's name -> a source ({kind: folder | hf | img2dataset | llava_json, path: ...}), or just a folder of images
    against: Annotated[dict[str, SerializeAsAny[Source]], BeforeValidator(_sources)]
    # Bits of PDQ's 256 in which two images may differ. Its authors' 31 misses copies of small images: a leak that stays
    # costs more than a sample that goes. benchmarks/campaigns/evaluation_leaks.md: copies within 58, others beyond 90.
    radius: int = Field(64, ge=0, le=128)
    # PDQ's 0..100, of the evaluation image: below it the hash tells too little, and only equal bytes count
    min_hash_quality: int = Field(20, ge=0, le=100)
    max_pixels: PositiveInt = 178_956_970  # larger evaluation images are noted and compared by bytes alone

    def demand(self, size: Size) -> Demand:
        """A task for each shard, after those that hash the sets, which is paid once."""
        return Demand({"images": Work(size.images, size.shards)}, rows=size.images / size.shards, rounds=2)

    def tasks(self, run: CurationRun) -> int:
        """The sets, then the shards."""
        return len(self.against) + len(run.plan.names)

    def rounds(self, run: CurationRun) -> Iterable[Sequence[int]]:
        """Shards come when all sets are hashed."""
        yield range(len(self.against))
        yield range(len(self.against), self.tasks(run))

    def worker(self, run: CurationRun) -> Worker:
        """A task below the number of sets hashes one, any other judges a shard."""
        compare: list[Callable[[str], pa.Table]] = []

        def work(task: int) -> Outcome:
            if task < len(self.against):
                return self._hash(run, list(self.against)[task])
            if not compare:  # the hashes are complete by then, and read once a process
                compare.append(self._comparison(run, run))
            return self._judge(run, task, compare[0])

        return work

    def again(self, run: CurationRun, before: CurationRun) -> Worker:
        """Compares with the hashes that were taken of the sets."""
        compare = self._comparison(run, before)
        return lambda task: Outcome(0, 0) if task < len(self.against) else self._judge(run, task, compare)

    def _judge(self, run: CurationRun, task: int, compare: Callable[[str], pa.Table]) -> Outcome:
        shard = run.plan.names[task - len(self.against)]
        table = compare(shard)
        run.write_sidecar(self.name, shard, table)
        return Outcome.of(table)

    def finish(self, run: CurationRun) -> None:
        """Remove the hashes of sets that are no longer named."""
        for path in run.folder.path(self.name, "sets").glob("*.parquet"):
            if path.stem not in self.against:
                path.unlink()

    def _hash(self, run: CurationRun, name: str) -> Outcome:
        members = run.folder.path(self.name, "members", name)
        known, refused = hash_set(self.against[name], members, self.max_pixels)
        write_known(run.folder.path(self.name, "sets", f"{name}.parquet"), known)
        return Outcome(0, 0, notes={"set": name, "images": len(known), "refused": refused})

    def _comparison(self, run: CurationRun, hashed: CurationRun) -> Callable[[str], pa.Table]:
        """Shard -> its sidecar; the sets' hashes are those of `hashed`."""
        known = Known.of(
            {name: read_known(hashed.folder.path(self.name, "sets", f"{name}.parquet")) for name in self.against},
            self.min_hash_quality,
        )

        def judge(shard: str) -> pa.Table:
            rows = run.gather(self.name, shard, WANTED).to_pylist()
            near = known.nearest([row["pdq"] for row in rows])
            found = [self._verdict(row, known, near.get(place)) for place, row in enumerate(rows)]
            return pa.Table.from_pylist(found, schema=SCHEMA)

        return judge

    def _verdict(self, row: Mapping[str, Any], known: Known, near: tuple[str, int] | None) -> dict[str, Any]:
        detail = None
        if item := known.exact.get(row["sha256"]):
            detail = f"{item}, equal bytes"
        elif near is not None and near[1] <= self.radius:
            detail = f"{near[0]}, PDQ {near[1]} bits"
        reason = "evaluation_image" if detail else None
        bits = near[1] if near is not None else None
        return {"key": row["key"], "keep": reason is None, "reason": reason, "detail": detail, "distance": bits}
