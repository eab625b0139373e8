"""Assign: each image's nearest centroid and its cosine, and the features once more in the order of clusters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa

from megavlm.platform.errors import InputError

from ..arrays import read_array
from ..features import read_half, unit
from ..grouping import ROWS_AT_ONCE, Grouping, grouping
from ..kmeans.nearest import Engine, Search, searcher
from ..kmeans.rows import ROWS_PER_PIECE
from ..shuffle import sorted_parts, write_parts
from .base import Outcome, Stage, Worker
from .demand import Demand, Size, Work

if TYPE_CHECKING:
    from pathlib import Path

    from ..run import CurationRun


class Assign(Stage):
    """Sidecars with cluster (int32) and cosine (float32) for every embedded image.

    RUN/assign/by_cluster/GROUP.arrow holds the features of a group of shards sorted by cluster, in one part for each
    bucket of clusters: shard (index in the plan), row (in the embed sidecar), cluster, cosine, features float16 [n, d].
    Whoever needs a cluster reads ranges there; single rows of the shards' own arrays would be slow to read.
    """

    needs: ClassVar[tuple[str, ...]] = ("embed", "cluster")
    per_shard: ClassVar[bool] = False  # a changed shard moves the centroids, and with them all shards' assignments
    judges: ClassVar[bool] = False
    version: ClassVar[int] = 2

    engine: Engine = "auto"  # as in cluster

    def tasks(self, run: CurationRun) -> int:
        """One for each group of shards."""
        return len(grouping(run).groups)

    def demand(self, size: Size) -> Demand:
        """Every image meets every centroid."""
        groups = max(1, min(size.shards, -(-size.images // ROWS_AT_ONCE)))
        work = {"images": Work(size.images, groups), "comparisons": Work(size.images * size.clusters, groups)}
        return Demand(work, rows=size.images / groups + size.clusters)

    def worker(self, run: CurationRun) -> Worker:
        """Loads the centroids once."""
        centroids, mean = (read_array(run.folder.path("cluster", f"{name}.npy")) for name in ("centroids", "mean"))
        whole = grouping(run)
        search = searcher(centroids, self.engine, int(whole.counts.sum()))

        def work(task: int) -> Outcome:
            shards = whole.groups[task]
            features = np.empty((int(whole.counts[shards].sum()), len(mean)), np.float16)
            rows = _assign(run, shards, features, mean, search)
            order, ends = sorted_parts(rows["cluster"], whole.bucket(rows["cluster"]), whole.buckets)
            write_parts(by_cluster(run, task), rows | {"features": features}, order, ends)
            return Outcome(len(features), len(features))

        return work

    def finish(self, run: CurationRun) -> None:
        """Remove groups of an earlier division."""
        valid = set(store(run, grouping(run)))
        for path in run.folder.path("assign", "by_cluster").glob("*.arrow"):
            if path not in valid:
                path.unlink()


def by_cluster(run: CurationRun, group: int) -> Path:
    """Where a group's sorted features lie."""
    return run.folder.path("assign", "by_cluster", f"{group:06d}.arrow")


def store(run: CurationRun, whole: Grouping) -> list[Path]:
    """All groups' sorted features."""
    return [by_cluster(run, group) for group in range(len(whole.groups))]


def _assign(
    run: CurationRun, shards: Sequence[int], features: np.ndarray, mean: np.ndarray, search: Search
) -> dict[str, np.ndarray]:
    """Assign a group's shards one after the other, write their sidecars and fill `features`."""
    parts, filled = [], 0
    for shard in shards:
        keys = run.sidecar("embed", run.plan.names[shard], ["key"])["key"]
        rows = features[filled : filled + len(keys)]
        clusters, cosines = np.empty(len(keys), np.int32), np.empty(len(keys), np.float32)
        for start in range(0, len(keys), ROWS_PER_PIECE):
            block = slice(start, min(start + ROWS_PER_PIECE, len(keys)))
            rows[block] = read_half(run, run.plan.names[shard], block.start, block.stop)
            clusters[block], cosines[block] = search(unit(rows[block].astype(np.float32), mean))
        _write_sidecar(run, run.plan.names[shard], keys, clusters, cosines)
        filled += len(keys)
        numbers = {"shard": np.full(len(keys), shard, np.int32), "row": np.arange(len(keys), dtype=np.int32)}
        parts.append(numbers | {"cluster": clusters, "cosine": cosines})
    if filled != len(features):
        raise InputError(f"the embed sidecars hold {filled} of {len(features)} images", fix="run again")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _write_sidecar(
    run: CurationRun, shard: str, keys: pa.ChunkedArray, clusters: np.ndarray, cosines: np.ndarray
) -> None:
    columns = {
        "key": keys,
        "keep": pa.repeat(True, len(keys)),
        "reason": pa.nulls(len(keys), pa.string()),
        "cluster": pa.array(clusters),
        "cosine": pa.array(cosines),
    }
    run.write_sidecar("assign", shard, pa.table(columns))
