"""The fitted constants from the published points, and how well they predict a source that they have not seen.

Least squares of the logarithm of step times: an error of 10 % weighs the same wherever it is. Loads no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from .contracts import Job
from .dense import job_of
from .points import Point, points
from .rates import Constants
from .timing import step_time

NAMES = tuple(field.name for field in dataclasses.fields(Constants))
LEAST, MOST, START = 0.05, 1.0, 0.6
ENOUGH = 1e-5
CONSISTENT = 0.01  # a row whose TFLOP/s are further from its tokens is not fitted: one of the two is wrong
ROUNDS, STEP = 30, 1e-4


@dataclasses.dataclass(frozen=True)
class Predicted:
    """A point's step: error of the fit over all points, and of one that had not seen its source, as fractions."""

    point: Point
    fitted: float
    unseen: float


def consistent(point: Point) -> bool:
    """Whether a row's tokens and TFLOP/s are the same, by its convention."""
    return point.claimed is None or abs(point.counted / point.claimed - 1) <= CONSISTENT


def fit(rows: Sequence[Point]) -> Constants:
    """Gauss-Newton between LEAST and MOST; what stands at an end and wants further is left there in that round."""
    jobs = [job_of(row) for row in rows]
    published = np.log([row.step for row in rows])
    at = np.full(len(NAMES), START)
    for _ in range(ROUNDS):
        errors = _logs(jobs, at) - published
        slopes = np.stack([(_logs(jobs, at + STEP * axis) - errors - published) / STEP for axis in np.eye(len(at))], 1)
        at, before = np.clip(at + _move(at, slopes, errors), LEAST, MOST), at
        if np.abs(at - before).max() < ENOUGH:
            break
    return Constants(**dict(zip(NAMES, map(float, at), strict=True)))


def _move(at: np.ndarray, slopes: np.ndarray, errors: np.ndarray) -> np.ndarray:
    downhill = -(slopes.T @ errors)
    free = ~((at >= MOST) & (downhill > 0)) & ~((at <= LEAST) & (downhill < 0))
    move = np.zeros_like(at)
    move[free] = np.linalg.lstsq(slopes[:, free], -errors, rcond=None)[0]
    return move


def _logs(jobs: list[Job], at: np.ndarray) -> np.ndarray:
    of = Constants(**dict(zip(NAMES, map(float, at), strict=True)))
    return np.log([step_time(job, of).total for job in jobs])


def predictions(rows: Sequence[Point] | None = None) -> list[Predicted]:
    """Of every consistent row (all there are, unless told), in their order."""
    rows = [row for row in rows or points() if consistent(row)]
    everything = fit(rows)
    without = {source: fit([row for row in rows if row.source != source]) for source in {row.source for row in rows}}
    return [Predicted(row, error(row, everything), error(row, without[row.source])) for row in rows]


def error(row: Point, of: Constants) -> float:
    """Predicted step over published one, less 1."""
    return step_time(job_of(row), of).total / row.step - 1
