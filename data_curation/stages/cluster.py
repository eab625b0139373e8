"""Cluster: centroids by FAISS K-means over the features of every shard."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import PositiveInt

from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.storage import write_atomic

from ..features import read_all, unit
from .base import Outcome, Stage, Worker

if TYPE_CHECKING:
    from pathlib import Path

    from ..run import CurationRun


class Cluster(Stage):
    """RUN/cluster/centroids.npy float32 [clusters, d] of unit length, and mean.npy float32 [d].

    Spherical K-means as in SemDeDup (arXiv 2303.09540). All features are read into memory: 4 * d bytes per image.
    """

    needs: ClassVar[tuple[str, ...]] = ("embed",)
    per_shard: ClassVar[bool] = False
    judges: ClassVar[bool] = False

    clusters: PositiveInt
    iterations: PositiveInt = 20  # at most: FAISS stops when nothing changes, and the ledger notes how many it ran
    center: bool = False  # subtract the mean feature first; random-weight features share one large direction
    max_points_per_centroid: PositiveInt = 256  # above that many images per cluster FAISS trains on a random subset

    def worker(self, run: CurationRun) -> Worker:
        """One task."""

        def work(task: int) -> Outcome:
            features = read_all(run, [shard.name for shard in run.shards])
            self._check(len(features))
            mean = features.mean(axis=0) if self.center else np.zeros(features.shape[1], np.float32)
            points = unit(features, mean).astype(np.float32)
            centroids, ran = kmeans(points, self.clusters, self.iterations, run.seed, self.max_points_per_centroid)
            for name, array in (("centroids", centroids), ("mean", mean)):
                write_array(run.folder.path("cluster", f"{name}.npy"), array)
            trained_on = min(len(points), self.clusters * self.max_points_per_centroid)
            notes = {"iterations_run": ran, "images": len(points), "trained_on": trained_on, "clusters": self.clusters}
            return Outcome(len(points), len(points), notes=notes)

        return work

    def _check(self, count: int) -> None:
        if count == 0:
            raise InputError("no image is left to cluster", fix="`megavlm curate status RUN` shows what was dropped")
        if count < self.clusters:
            raise ConfigError(
                f"{self.clusters} clusters for {count} images",
                where="curation.stages.cluster.clusters",
                fix=f"curation.stages.cluster.clusters={max(1, count // 20)}",
            )


def kmeans(points: np.ndarray, clusters: int, iterations: int, seed: int, per_centroid: int) -> tuple[np.ndarray, int]:
    """Spherical K-means of unit rows float32 [n, d]: unit centroids [clusters, d], and the iterations actually run."""
    import faiss

    # min_points_per_centroid only silences a warning; the recipe says how many clusters it wants
    model = faiss.Kmeans(
        points.shape[1],
        clusters,
        niter=iterations,
        seed=seed,
        spherical=True,
        max_points_per_centroid=per_centroid,
        min_points_per_centroid=1,
    )
    model.train(np.ascontiguousarray(points))
    centroids, objectives = np.asarray(model.centroids), np.asarray(model.obj)
    return unit(centroids).astype(np.float32), len(objectives)


def nearest(points: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For unit rows [n, d]: index of the centroid with the highest cosine, int64 [n], and that cosine float32 [n]."""
    import faiss

    index = faiss.IndexFlatIP(centroids.shape[1])
    index.add(np.ascontiguousarray(centroids, dtype=np.float32))
    cosines, indices = index.search(np.ascontiguousarray(points, dtype=np.float32), 1)
    return indices[:, 0], cosines[:, 0]


def write_array(path: Path, array: np.ndarray) -> None:
    """A .npy file, whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_atomic(path, buffer.getvalue())


def read_array(path: Path) -> np.ndarray:
    """The inverse of write_array; nothing is unpickled."""
    return np.load(path, allow_pickle=False)
