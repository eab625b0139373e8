"""Cluster: centroids by spherical K-means over a sample of the features, flat or in levels."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from megavlm.platform.errors import ConfigError, InputError

from ..arrays import write_array
from ..features import read_half
from ..grouping import embedded
from ..kmeans.levels import Effort, Level, Tree, grow, resampled
from ..kmeans.lloyd import Fit
from ..kmeans.nearest import Engine
from ..kmeans.sample import Sample
from ..kmeans.size import demand, piloted
from ..kmeans.training import Training
from .base import Outcome, Stage, Worker
from .demand import Demand, Size

if TYPE_CHECKING:
    from ..run import CurationRun

MEAN, ROWS, BEGIN, STEPS = range(4)  # kinds of tasks that the parts share, the iterations counting on from STEPS


class Cluster(Stage):
    """RUN/cluster/centroids.npy float32 [clusters, d] of unit length, and mean.npy float32 [d].

    Spherical K-means as in SemDeDup (arXiv 2303.09540). `method: hierarchical` (arXiv 2405.15613) adds `levels`:
    centroids-T.npy float32 [k_T, d], and parents-T.npy int32: the cluster of level T + 1 in which each of level T lies,
    level 1 being centroids.npy. Training rows lie on disk; in memory are the centroids and some thousand rows.
    """

    needs: ClassVar[tuple[str, ...]] = ("embed",)
    per_shard: ClassVar[bool] = False
    judges: ClassVar[bool] = False
    large_tasks: ClassVar[bool] = True
    version: ClassVar[int] = 2

    method: Literal["flat", "hierarchical"] = "flat"
    clusters: PositiveInt  # of the finest level
    iterations: PositiveInt = 20  # at most; the ledger notes how many ran, and why it stopped
    tolerance: float = Field(
        default=0.0, ge=0
    )  # stop when the mean cosine changes by no more than this share of itself
    center: bool = False  # subtract the mean feature first; random-weight features share one large direction
    train_on: PositiveInt | None = None  # images drawn for training; null: clusters * max_points_per_centroid
    max_points_per_centroid: PositiveInt = 256  # FAISS's limit, which FAISS applies without a word
    parts: PositiveInt = 1  # tasks that share each iteration, one for each worker or node; the centroids are the same
    engine: Engine = "auto"  # who finds nearest centroids: faiss, or this project's kernel; each on GPUs it sees
    # hierarchical: the coarser levels, finest first, and how often the finest one is thinned out and clustered again
    levels: tuple[Level, ...] = ()
    resampling: NonNegativeInt = 1
    closest: PositiveInt = 10  # images of each cluster that a resampling keeps

    @model_validator(mode="after")
    def _levels_fit(self) -> Cluster:
        if (self.method == "hierarchical") != bool(self.levels):
            raise ValueError("`levels` goes with `method: hierarchical`, and that needs at least one")
        counts = [self.clusters, *(level.clusters for level in self.levels)]
        if any(coarse >= fine for fine, coarse in zip(counts, counts[1:], strict=False)):
            raise ValueError(f"each level has fewer clusters than the one below it, not {counts}")
        return self

    def decisive(self) -> dict[str, Any]:
        """All but `parts`: the parts' sums are exact, so the centroids are the same. Engines round differently."""
        return self.model_dump(mode="json", exclude={"parts"})

    def demand(self, size: Size) -> Demand:
        """Rows and comparisons of every pass."""
        return demand(self, size)

    def piloted(self, share: float) -> dict[str, Any]:
        """Fewer clusters for fewer images."""
        return piloted(self, share)

    def tasks(self, run: CurationRun) -> int:
        """0 ends the training, alone if need be; the others share what comes before (see rounds)."""
        return 1 if self.parts == 1 else self._number(STEPS + self.iterations)

    def rounds(self, run: CurationRun) -> Iterator[Sequence[int]]:
        """[means], [rows], [first centroids], then one round for each iteration, and the end."""
        if self.parts > 1 and not self._ended(run):
            training = self._training(run)
            if self.center:
                yield self._round(MEAN)
            yield self._round(ROWS)
            yield [self._number(BEGIN)]
            fit = training.latest()
            while not training.ended(fit):
                yield self._round(STEPS + len(fit.objectives))
                fit = training.step(fit)
        yield [0]

    def worker(self, run: CurationRun) -> Worker:
        """Whatever the task's number says."""
        training = self._training(run)
        dimension = self._dimension(run, training)

        def work(task: int) -> Outcome:
            if task == 0:
                return self._end(run, training, dimension)
            kind, part = divmod(task - self._number(MEAN), self.parts)
            if kind == MEAN:
                training.add_for_mean(part, dimension)
            elif kind == ROWS:
                training.write_rows(part, dimension)
            elif kind == BEGIN:
                training.begin()
            else:
                training.add_for(kind - STEPS, part)
            return Outcome(0, 0)  # the images are counted once, by task 0

        return work

    def finish(self, run: CurationRun) -> None:
        """Remove what only the training needed, and levels that no longer are."""
        for folder in run.folder.path("cluster").glob("training-*"):
            shutil.rmtree(folder)
        named = {f"{name}-{level + 1}.npy" for level in range(len(self.levels)) for name in ("parents",)}
        named |= {f"centroids-{level + 2}.npy" for level in range(len(self.levels))}
        for path in run.folder.path("cluster").glob("*-*.npy"):
            if path.name not in named:
                path.unlink()

    def _number(self, kind: int) -> int:
        """The first task of a kind: another one for other `parts`, or one's tasks would count as the other's."""
        return 1 + (STEPS + self.iterations) * (self.parts * (self.parts - 1) // 2) + kind * self.parts

    def _round(self, kind: int) -> range:
        return range(self._number(kind), self._number(kind + 1))

    def _ended(self, run: CurationRun) -> bool:
        """Whether the centroids are there, and all that led to them is gone."""
        from ..fingerprint import task_fingerprints

        return 0 in run.ledger.done(self.name, task_fingerprints(run, self.name, [0]))

    def _training(self, run: CurationRun) -> Training:
        from ..fingerprint import stage_fingerprints

        counts = embedded(run)
        self._check(int(counts.sum()))
        folder = run.folder.path("cluster", f"training-{stage_fingerprints(run)[self.name]}-{self.parts}")
        folder.mkdir(parents=True, exist_ok=True)
        wanted = min(int(counts.sum()), self.train_on or self.clusters * self.max_points_per_centroid)
        spread = self.method == "hierarchical"
        how = (self.clusters, self.parts, self.iterations, self.tolerance, self.engine, self.center, spread)
        return Training(folder, Sample(run, counts, wanted), *how)

    def _check(self, count: int) -> None:
        if count == 0:
            raise InputError("no image is left to cluster", fix="`megavlm curate status RUN` shows what was dropped")
        if count < self.clusters:
            raise ConfigError(
                f"{self.clusters} clusters for {count} images",
                where="curation.stages.cluster.clusters",
                fix=f"curation.stages.cluster.clusters={max(1, count // 20)}",
            )
        if self.train_on is not None and self.train_on < self.clusters:
            raise ConfigError(
                f"{self.clusters} clusters cannot be trained on {self.train_on} images",
                where="curation.stages.cluster.train_on",
                fix=f"curation.stages.cluster.train_on={self.clusters * self.max_points_per_centroid}",
            )

    def _dimension(self, run: CurationRun, training: Training) -> int:
        first = int(np.flatnonzero(training.sample.counts)[0])
        return read_half(run, run.plan.names[first], 0, 1).shape[1]

    def _end(self, run: CurationRun, training: Training, dimension: int) -> Outcome:
        for part in range(self.parts):
            if self.center and not (training.folder / f"mean-{part:04d}.npy").exists():
                training.add_for_mean(part, dimension)
        for part in range(self.parts):
            training.write_rows(part, dimension)
        fit = training.latest()
        while not training.ended(fit):
            fit = training.step(fit)
        tree = self._tree(run, training, fit)
        self._write(run, tree, training.mean(dimension))
        images = int(training.sample.counts.sum())
        return Outcome(images, images, notes=self._notes(training, fit, tree))

    def _tree(self, run: CurationRun, training: Training, fit: Fit) -> Tree:
        if not self.levels:
            return Tree([fit.centroids], [])
        effort = Effort(self.iterations, self.tolerance, run.seed, self.engine)
        finest = Level(clusters=self.clusters, resampling=self.resampling, closest=self.closest)
        return grow(resampled(training.rows, fit, finest, effort).centroids, self.levels, effort)

    def _write(self, run: CurationRun, tree: Tree, mean: np.ndarray) -> None:
        arrays = {"mean": mean, "centroids": tree.centroids[0]}
        arrays |= {f"centroids-{level}": centroids for level, centroids in enumerate(tree.centroids[1:], start=2)}
        arrays |= {f"parents-{level}": parents for level, parents in enumerate(tree.parents, start=1)}
        for name, array in arrays.items():
            write_array(run.folder.path("cluster", f"{name}.npy"), array)

    def _notes(self, training: Training, fit: Fit, tree: Tree) -> dict[str, Any]:
        images, trained_on = int(training.sample.counts.sum()), training.sample.wanted
        return {
            "images": images,
            "trained_on": trained_on,  # fewer than `images`: drawn by the seed, each shard giving its share
            "clusters": self.clusters,
            "levels": [len(centroids) for centroids in tree.centroids],
            "iterations_asked": self.iterations,
            "iterations_run": len(fit.objectives),
            "stopped": training.ended(fit),  # "converged" or "iterations"
            "mean_cosine": fit.objectives[-1],
        }
