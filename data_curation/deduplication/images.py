"""What deduplication knows of every image, in the order of clusters and in that of file hashes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc

from ..grouping import Grouping
from ..shuffle import read_part, sorted_parts, write_parts

if TYPE_CHECKING:
    import pyarrow as pa

    from ..run import CurationRun

WANTED = {
    "filter": ["width", "height", "bytes", "sha256", "pdq", "pdq_quality"],
    "assign": ["cluster", "cosine"],
}
IDENTITY = ("shard", "row", "key", "rank_a", "rank_b")
Columns = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Images:
    """The stage's files below RUN/deduplicate/work.

    An image is (shard, row): its shard's place in the plan, its place in the shard's embed sidecar. Of two images the
    one with the lower (rank_a, rank_b, shard, row) stays.
    """

    run: CurationRun
    stage: str
    whole: Grouping

    @property
    def folder(self) -> Path:
        """Where everything lies that is not a sidecar."""
        return self.run.folder.path(self.stage, "work")

    def rows(self, kind: str) -> list[Path]:
        """One file for each group, with a part for each bucket of clusters (`cluster`) or of hashes (`digest`)."""
        return [self.folder / f"by-{kind}-{group:06d}.arrow" for group in range(len(self.whole.groups))]

    def trial(self, bucket: int) -> Path:
        """int64 [3]: images, and how many each of two epsilons keeps."""
        return self.folder / f"trial-{bucket:06d}.npy"

    def found_path(self, name: str) -> Path:
        """What one task found, one part for each group of shards."""
        return self.folder / f"found-{name}.arrow"

    def received(self, shard: int) -> tuple[pa.Table, np.ndarray]:
        """What earlier stages say of a shard's images that get here, and their places in its embed sidecar."""
        name = self.run.plan.names[shard]
        table = self.run.gather(self.stage, name, WANTED)
        keys = self.run.sidecar("embed", name, ["key"])["key"].combine_chunks()
        return table, pc.index_in(table["key"].combine_chunks(), value_set=keys).to_numpy().astype(np.int32)

    def part(self, kind: str, part: int) -> Columns:
        """One bucket of images."""
        return read_part(self.rows(kind), part)


def write_images(images: Images, keep: str) -> None:
    """Write every image's facts in both orders."""
    whole = images.whole
    for shards, by_cluster, by_digest in zip(whole.groups, images.rows("cluster"), images.rows("digest"), strict=True):
        columns = _columns(images, shards, keep)
        digest = columns.pop("digest")
        order, ends = sorted_parts(columns["cluster"], whole.bucket(columns["cluster"]), whole.buckets)
        write_parts(by_cluster, columns, order, ends)
        first = digest[:, :2].astype(np.int64) @ np.array([256, 1])
        order, ends = sorted_parts(first, first * whole.buckets >> 16, whole.buckets)
        write_parts(by_digest, {name: columns[name] for name in IDENTITY} | {"digest": digest}, order, ends)


def _columns(images: Images, shards: Sequence[int], keep: str) -> Columns:
    parts = [_of_shard(images, shard, keep) for shard in shards]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _of_shard(images: Images, shard: int, keep: str) -> Columns:
    table, rows = images.received(shard)
    count = len(table)
    hexadecimal = "".join(table["sha256"].to_pylist())
    columns = {
        "shard": np.full(count, shard, np.int32),
        "row": rows,
        "key": np.array(table["key"].to_pylist(), dtype=object),
        "cluster": table["cluster"].to_numpy(),
        "pdq": np.frombuffer(b"".join(table["pdq"].to_pylist()), np.uint8).reshape(count, 32),
        "quality": table["pdq_quality"].to_numpy(),
        "digest": np.frombuffer(bytes.fromhex(hexadecimal), np.uint8).reshape(count, 32),
    }
    drawn = np.random.default_rng([images.run.seed, shard]).random(int(images.whole.counts[shard]))[rows]
    facts = {name: table[name].to_numpy().astype(np.float64) for name in ("width", "height", "bytes", "cosine")}
    columns["rank_a"], columns["rank_b"] = ranks(keep, facts | {"drawn": drawn})
    return columns


def ranks(keep: str, facts: Columns) -> tuple[np.ndarray, np.ndarray]:
    """Two float64 [n] by which images are sorted: the lower one stays."""
    nothing = np.zeros(len(facts["cosine"]))
    return {
        "largest": (-facts["width"] * facts["height"], -facts["bytes"]),
        "hard": (facts["cosine"], nothing),
        "easy": (-facts["cosine"], nothing),
        "random": (facts["drawn"], nothing),
    }[keep]


def in_order(columns: Columns, *first: str) -> np.ndarray:
    """The order of images by the columns `first`, then by who stays: int64 [n]."""
    names = (*first, "rank_a", "rank_b", "shard", "row")
    return np.lexsort([columns[name] for name in reversed(names)])
