"""A training of K-means in a folder: what its tasks hand to each other, and how far it has come.

FOLDER/rows/*.npy             the rows, written by everyone
FOLDER/mean-PART.npy          the sum of a part's rows, where the mean is to be taken off
FOLDER/fit-ITERATION.npz      centroids after so many iterations, and the objectives that led to them
FOLDER/sums-ITERATION-PART.npz  what a part's rows add up to, by these centroids

The folder's name holds the stage's fingerprint, so everything in it can be trusted, whoever wrote it and when.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from ..arrays import read_array, write_array
from ..shuffle import whole
from .lloyd import Fit, Sums, add_up, moved, total
from .nearest import Engine, searcher
from .rows import OnDisk
from .sample import Sample
from .start import random_rows, spread_rows


@dataclasses.dataclass(frozen=True)
class Training:
    """Tasks call its methods; none depends on how many parts there are, apart from which pieces it handles."""

    folder: Path
    sample: Sample
    clusters: int
    parts: int
    iterations: int
    tolerance: float
    engine: Engine
    center: bool
    spread: bool

    @property
    def rows(self) -> OnDisk:
        """The rows it is trained on."""
        return OnDisk(self.folder / "rows", self.sample.wanted)

    def pieces(self, part: int) -> range:
        """Which of the rows' pieces a part handles."""
        return range(part * self.rows.pieces // self.parts, (part + 1) * self.rows.pieces // self.parts)

    def add_for_mean(self, part: int, dimension: int) -> None:
        """First, where the mean is wanted."""
        write_array(self.folder / f"mean-{part:04d}.npy", self.sample.add_up(self.pieces(part), dimension))

    def mean(self, dimension: int) -> np.ndarray:
        """The mean row, float32 [d]; zeros where it is not to be taken off."""
        if not self.center:
            return np.zeros(dimension, np.float32)
        sums = [read_array(self.folder / f"mean-{part:04d}.npy") for part in range(self.parts)]
        return (np.sum(sums, axis=0) / self.sample.wanted).astype(np.float32)

    def write_rows(self, part: int, dimension: int) -> None:
        """Then the rows."""
        self.sample.write(self.rows, self.pieces(part), self.mean(dimension))

    def begin(self) -> Fit:
        """Then the first centroids."""
        if (fit := self.fit(0)) is None:
            seed = self.sample.run.seed
            spread = self.spread
            fit = spread_rows(self.rows, self.clusters, seed, self.engine) if spread else self._random(seed)
            self.save(fit)
        return fit

    def _random(self, seed: int) -> Fit:
        return random_rows(self.rows, self.clusters, seed)

    def add_for(self, iteration: int, part: int) -> None:
        """Then, again and again, what each part's rows add up to."""
        fit = self.fit(iteration)
        assert fit is not None  # the driver has saved it before it named this task
        sums = self._add_up(fit, self.pieces(part))
        with whole(self._sums(iteration, part)) as beside, beside.open("wb") as file:
            np.savez(file, rows=sums.rows, counts=sums.counts, cosine=np.float64(sums.cosine))

    def step(self, fit: Fit) -> Fit:
        """One iteration: the parts' sums where they are there, all rows in this process otherwise."""
        paths = [self._sums(len(fit.objectives), part) for part in range(self.parts)]
        if all(path.exists() for path in paths):
            sums = total([_load_sums(path) for path in paths])
        else:
            sums = self._add_up(fit, range(self.rows.pieces))
        after = moved(fit, sums)
        self.save(after)
        for path in paths:
            path.unlink(missing_ok=True)
        return after

    def ended(self, fit: Fit) -> str | None:
        """Why no iteration follows, or None."""
        return fit.ended(self.iterations, self.tolerance)

    def latest(self) -> Fit:
        """How far it has come."""
        done = [int(path.stem.split("-")[1]) for path in self.folder.glob("fit-*.npz")]
        return (self.fit(max(done)) if done else None) or self.begin()

    def save(self, fit: Fit) -> None:
        """Keep the state after an iteration, and let the one before go."""
        iteration = len(fit.objectives)
        with whole(self._fit(iteration)) as beside, beside.open("wb") as file:
            np.savez(file, centroids=fit.centroids, objectives=np.array(fit.objectives))
        if iteration:
            self._fit(iteration - 1).unlink(missing_ok=True)

    def fit(self, iteration: int) -> Fit | None:
        """The state after so many iterations, if it is there."""
        path = self._fit(iteration)
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as arrays:
            return Fit(arrays["centroids"], tuple(arrays["objectives"].tolist()))

    def _add_up(self, fit: Fit, pieces: range) -> Sums:
        search = searcher(fit.centroids, self.engine, self.rows.total)
        return add_up((self.rows.piece(piece) for piece in pieces), search, fit.centroids.shape)

    def _fit(self, iteration: int) -> Path:
        return self.folder / f"fit-{iteration:04d}.npz"

    def _sums(self, iteration: int, part: int) -> Path:
        return self.folder / f"sums-{iteration:04d}-{part:04d}.npz"


def _load_sums(path: Path) -> Sums:
    with np.load(path, allow_pickle=False) as arrays:
        return Sums(arrays["rows"], arrays["counts"], float(arrays["cosine"]))
