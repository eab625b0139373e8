"""Groups of shards and buckets of clusters: the units in which stages hold rows in memory, whatever the run's size."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .run import CurationRun

# 100 MB of 768 features in float16. What assign wrote is divided by it: another number needs new versions of assign,
# deduplicate and select.
ROWS_AT_ONCE = 65_536


@dataclasses.dataclass(frozen=True)
class Grouping:
    """`counts` int64 [shards]: embedded images of each; `clusters`: how many there are."""

    counts: np.ndarray
    clusters: int

    @functools.cached_property
    def buckets(self) -> int:
        """Into how many ranges of clusters the images are divided."""
        return int(min(self.clusters, max(1, -(-self.counts.sum() // ROWS_AT_ONCE))))

    def bucket(self, clusters: np.ndarray) -> np.ndarray:
        """The bucket of each cluster: neighbouring clusters share one."""
        return clusters.astype(np.int64) * self.buckets // self.clusters

    @functools.cached_property
    def groups(self) -> list[Sequence[int]]:
        """Neighbouring shards with at most ROWS_AT_ONCE images, or one shard that has more."""
        return groups_of(self.counts, ROWS_AT_ONCE)

    @functools.cached_property
    def group_of(self) -> np.ndarray:
        """The group of each shard, int64 [shards]."""
        return np.repeat(np.arange(len(self.groups)), [len(shards) for shards in self.groups])

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """The number of embedded images before each shard, int64 [shards]."""
        return np.cumsum(self.counts) - self.counts


def groups_of(counts: np.ndarray, most: int) -> list[Sequence[int]]:
    """Runs of neighbouring indices whose counts add up to at most `most`, or single ones above it."""
    groups, first, held = list[Sequence[int]](), 0, 0
    for index, count in enumerate(counts.tolist()):
        if held + count > most and index > first:
            groups.append(range(first, index))
            first, held = index, 0
        held += count
    return [*groups, range(first, len(counts))]


def embedded(run: CurationRun) -> np.ndarray:
    """How many images of each shard have features, int64 [shards], from the ledger."""
    from .fingerprint import stage_fingerprints, task_fingerprints

    tasks = range(len(run.plan.names))
    prints = task_fingerprints(run, "embed", tasks, stage_fingerprints(run)["embed"])
    state = run.ledger.state("embed", prints)
    return np.array([state[task].entry()["kept"] if task in state else 0 for task in tasks], dtype=np.int64)


def grouping(run: CurationRun) -> Grouping:
    """Of a run whose clusters are known."""
    clusters = len(np.load(run.folder.path("cluster", "centroids.npy"), mmap_mode="r", allow_pickle=False))
    return Grouping(embedded(run), clusters)
