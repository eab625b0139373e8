"""Select: the n images nearest to each centroid (EVE 3.2: 300 of each of 50,000 clusters), or a balanced sample."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import PositiveInt, model_validator

from ..arrays import read_array
from ..grouping import ROWS_AT_ONCE, Grouping, grouping
from ..kmeans.balance import top_down
from ..kmeans.ranks import ranks_in_cluster
from ..shuffle import read_part, sorted_parts, write_parts
from .base import Outcome, Stage, Worker
from .demand import Demand, Size, Work
from .sidecar import judging_schema

if TYPE_CHECKING:
    from ..run import CurationRun

SCHEMA = judging_schema(
    cluster=pa.int32(),
    cosine=pa.float32(),
    rank=pa.int32(),  # place within the cluster, 0 being the first to be kept
)
WANTED = {"assign": ["cluster", "cosine"]}
Columns = dict[str, np.ndarray]


class Select(Stage):
    """Keeps the first of each cluster: by cosine to the centroid, ties to the earlier shard and position, or at random.

    `method: nearest` keeps as many of every cluster; `balanced` shares `target` among the clusters from the coarsest
    level down, so that all give the same as far as they have it (arXiv 2405.15613; flat clusters are one level).
    In memory are one group of shards and one bucket of clusters at a time.
    """

    needs: ClassVar[tuple[str, ...]] = ("assign",)
    per_shard: ClassVar[bool] = False
    version: ClassVar[int] = 2
    from_sidecars: ClassVar[bool] = True

    method: Literal["nearest", "balanced"] = "nearest"
    nearest: PositiveInt | None = None  # images of each cluster
    target: PositiveInt | None = None  # balanced: images in all
    leaf: Literal["closest", "random"] = "closest"  # which images of a cluster

    @model_validator(mode="after")
    def _size(self) -> Select:
        wanted, other = ("nearest", "target") if self.method == "nearest" else ("target", "nearest")
        if getattr(self, wanted) is None or getattr(self, other) is not None:
            raise ValueError(f"`method: {self.method}` needs `{wanted}`, and no `{other}`")
        return self

    def demand(self, size: Size) -> Demand:
        """Sorting, and never more kept than the clusters may give."""
        most = self.target if self.nearest is None else self.nearest * size.clusters
        return Demand({"images": Work(size.images)}, rows=min(size.images, ROWS_AT_ONCE), most=most)

    def piloted(self, share: float) -> dict[str, Any]:
        """A target is one for the whole run; `nearest` is one for each cluster, however many there are."""
        return {} if self.target is None else {"target": max(1, round(self.target * share))}

    def worker(self, run: CurationRun) -> Worker:
        """One task: shards to buckets, ranks in each bucket, and back to shards."""

        def work(task: int) -> Outcome:
            whole, folder = grouping(run), run.folder.path("select", "sorting")
            shutil.rmtree(folder, ignore_errors=True)
            sizes = self._sort(run, whole, folder)
            quotas = self._quotas(run, sizes)
            for bucket in range(whole.buckets):
                self._rank(run, whole, folder, bucket)
            outcomes = [self._judge(run, whole, folder, group, quotas) for group in range(len(whole.groups))]
            shutil.rmtree(folder)
            return Outcome.total(outcomes, {"clusters_used": int((sizes > 0).sum())})

        return work

    def _sort(self, run: CurationRun, whole: Grouping, folder: Path) -> np.ndarray:
        """Write every group's images by cluster; returns how many each cluster has."""
        sizes = np.zeros(whole.clusters, np.int64)
        for group, shards in enumerate(whole.groups):
            rows = _gathered(run, self.name, shards)
            sizes += np.bincount(rows["cluster"], minlength=whole.clusters)
            order, ends = sorted_parts(rows["cluster"], whole.bucket(rows["cluster"]), whole.buckets)
            write_parts(folder / f"rows-{group:06d}.arrow", rows, order, ends)
        return sizes

    def _quotas(self, run: CurationRun, sizes: np.ndarray) -> np.ndarray:
        """How many images each cluster may keep, int64 [clusters]."""
        if self.nearest is not None:
            return np.full(len(sizes), self.nearest, np.int64)
        assert self.target is not None  # _size
        paths = sorted(run.folder.path("cluster").glob("parents-*.npy"), key=lambda path: int(path.stem.split("-")[1]))
        return top_down(sizes, [read_array(path) for path in paths], self.target, run.seed)

    def _rank(self, run: CurationRun, whole: Grouping, folder: Path, bucket: int) -> None:
        """Write the places of a bucket's images in their clusters, by group."""
        rows = read_part([folder / f"rows-{group:06d}.arrow" for group in range(len(whole.groups))], bucket)
        by = rows["cosine"]
        if self.leaf == "random":
            by = np.random.default_rng([run.seed, bucket]).random(len(by))
        ranks = ranks_in_cluster(rows["cluster"], by).astype(np.int32)  # parts stand in the order of groups and shards
        found = {"shard": rows["shard"], "row": rows["row"], "rank": ranks}
        order, ends = sorted_parts(rows["shard"], whole.group_of[rows["shard"]], len(whole.groups))
        write_parts(folder / f"ranks-{bucket:06d}.arrow", found, order, ends)

    def _judge(self, run: CurationRun, whole: Grouping, folder: Path, group: int, quotas: np.ndarray) -> Outcome:
        """Write the sidecars of a group's shards."""
        found = read_part([folder / f"ranks-{bucket:06d}.arrow" for bucket in range(whole.buckets)], group)
        order = np.lexsort((found["row"], found["shard"]))
        shards, ranks = found["shard"][order], found["rank"][order]
        outcomes = []
        for shard in whole.groups[group]:
            start, end = np.searchsorted(shards, [shard, shard + 1])
            name = run.plan.names[shard]
            table = self._sidecar(run.gather(self.name, name, WANTED), ranks[start:end], quotas)
            run.write_sidecar(self.name, name, table)
            outcomes.append(Outcome.of(table))
        return Outcome.total(outcomes)

    def _sidecar(self, part: pa.Table, ranks: np.ndarray, quotas: np.ndarray) -> pa.Table:
        quota = quotas[part["cluster"].to_numpy()]
        far = ranks >= quota
        reason = "far_from_centroid" if self.method == "nearest" else "over_quota"
        rows = zip(far.tolist(), ranks.tolist(), part["cluster"].to_pylist(), quota.tolist(), strict=True)
        details = [
            f"rank {rank} of cluster {cluster}, kept are {most}" if off else None for off, rank, cluster, most in rows
        ]
        columns = {
            "key": part["key"],
            "keep": ~far,
            "reason": pa.array([reason if off else None for off in far.tolist()], pa.string()),
            "detail": pa.array(details, pa.string()),
            "cluster": part["cluster"],
            "cosine": part["cosine"],
            "rank": ranks,
        }
        return pa.table(columns, schema=SCHEMA)


def _gathered(run: CurationRun, stage: str, shards: Sequence[int]) -> Columns:
    """shard, row (place among the shard's survivors), cluster and cosine of everything a group sends on to `stage`."""
    parts = []
    for shard in shards:
        part = run.gather(stage, run.plan.names[shard], WANTED)
        numbers = {"shard": np.full(len(part), shard, np.int32), "row": np.arange(len(part), dtype=np.int32)}
        parts.append(numbers | {name: part[name].to_numpy() for name in ("cluster", "cosine")})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
