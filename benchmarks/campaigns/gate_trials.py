"""Simulated pairs of models of known truth, and intervals that the gate's was chosen from."""

from __future__ import annotations

import dataclasses
import math
from statistics import NormalDist
from typing import Any

import numpy as np
from scipy import stats

from megavlm.megatron_mm.evaluation.intervals import CONTINUITY, score_interval

Limits = tuple[np.ndarray, np.ndarray]
RESAMPLED = 199  # by the bootstrap, per trial
MOST_CELLS = 2_000_000  # of counts that one call of an interval is given at a time


@dataclasses.dataclass(frozen=True)
class Truth:
    """What an item's drop is: `drops` [k] with probabilities `shares` [k]."""

    drops: np.ndarray
    shares: np.ndarray

    @property
    def drop(self) -> float:
        """The true mean."""
        return float(self.drops @ self.shares)

    def draw(self, items: int, trials: int, rng: np.random.Generator) -> np.ndarray:
        """Counts [trials, k] of what `trials` evaluations of `items` items see."""
        return rng.multinomial(items, self.shares, size=trials)


def right_or_wrong(before: float, drop: float, correlation: float) -> Truth:
    """Two models of accuracy `before` and `before - drop` whose right answers correlate so.

    Where no two models can be as alike as that, the most alike there are: the new one gains nothing.
    """
    after = before - drop
    both = before * after + correlation * math.sqrt(before * (1 - before) * after * (1 - after))
    both = min(both, before, after)
    shares = np.array([before - both, 1 - before - after + 2 * both, after - both])
    return Truth(np.array([1.0, 0.0, -1.0]), shares / shares.sum())


VALUES = {  # of an item, and how often the baseline earns each: VQA accuracy; ANLS (0, or 0.5 to 1)
    "VQA accuracy": (np.array([0, 0.3, 0.6, 0.9, 1.0]), np.array([0.15, 0.05, 0.06, 0.06, 0.68])),
    "ANLS": (np.concatenate([[0], np.linspace(0.5, 1, 26)]), np.array([0.12, *[0.08 / 25] * 25, 0.80])),
}


def shares(metric: str, drop: float, changed: float) -> Truth:
    """Of `changed` of the items the new answer has nothing to do with the old; some of the others are wrong now."""
    values, baseline = VALUES[metric]
    fresh = changed * np.outer(baseline, baseline)
    same = (1 - changed) * np.diag(baseline)
    broken = drop / (values @ baseline) / (1 - changed)
    joint = fresh + (1 - broken) * same
    joint[:, 0] += broken * same.sum(1)
    differences = np.round(values[:, None] - values[None, :], 9)
    distinct, place = np.unique(differences, return_inverse=True)
    return Truth(distinct, np.bincount(place.ravel(), weights=joint.ravel()))


def score(drops: np.ndarray, counts: np.ndarray, confidence: float, alone: bool = True) -> Limits:
    """The gate's own, each different table once."""
    steps = alone and bool(np.all(drops == np.rint(drops)))
    return _each_once(drops, counts, confidence, continuity=CONTINUITY if steps else 0.0, skewness=True)


def uncorrected(drops: np.ndarray, counts: np.ndarray, confidence: float) -> Limits:
    """Without the corrections: of right and wrong, Tango's."""
    return _each_once(drops, counts, confidence, continuity=0.0, skewness=False)


def _each_once(drops: np.ndarray, counts: np.ndarray, confidence: float, **how: Any) -> Limits:
    tables, place = np.unique(counts, axis=0, return_inverse=True)
    block = max(MOST_CELLS // tables.shape[1], 1)
    parts = [score_interval(drops, tables[at : at + block], confidence, **how) for at in range(0, len(tables), block)]
    low, high = (np.concatenate(ends)[place.ravel()] for ends in zip(*parts, strict=True))
    return low, high


def student(drops: np.ndarray, counts: np.ndarray, confidence: float) -> Limits:
    """Student's t of the differences."""
    mean, error, items = moments(drops, counts)
    half = stats.t.ppf(0.5 + confidence / 2, items - 1) * error
    return mean - half, mean + half


def bernstein(drops: np.ndarray, counts: np.ndarray, confidence: float) -> Limits:
    """Maurer and Pontil (2009), "Empirical Bernstein bounds and sample variance penalization", theorem 4."""
    mean, error, items = moments(drops, counts)
    told = math.log(4 / (1 - confidence))
    half = error * math.sqrt(2 * told) + 2 * 7 * told / (3 * (items - 1))
    return mean - half, mean + half


def bootstrap_t(drops: np.ndarray, counts: np.ndarray, confidence: float) -> Limits:
    """Studentised resampling; where nothing differs there is nothing to resample, and both ends are the mean."""
    rng, (mean, error, items) = np.random.default_rng(0), moments(drops, counts)
    again = rng.multinomial(int(items), (counts / items)[None], size=(RESAMPLED, len(counts)))
    means, errors, _ = moments(drops, again)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.nan_to_num((means - mean) / errors, nan=0.0, posinf=1e9, neginf=-1e9)
    low, high = np.quantile(ratios, [0.5 - confidence / 2, 0.5 + confidence / 2], axis=0)
    return mean - high * error, mean - low * error


def wald(drops: np.ndarray, counts: np.ndarray, confidence: float) -> Limits:
    """The normal approximation."""
    mean, error, _ = moments(drops, counts)
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * error
    return mean - half, mean + half


def moments(drops: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Means [...], their standard errors [...], and the number of items."""
    items = float(counts.sum(-1).flat[0])
    mean = counts @ drops / items
    variance = np.maximum(counts @ drops**2 / items - mean**2, 0) * items / (items - 1)
    return mean, np.sqrt(variance / items), items


METHODS = {
    "score, corrected": score,
    "score, uncorrected": uncorrected,
    "Student's t": student,
    "Wald": wald,
    "bootstrap-t": bootstrap_t,
    "empirical Bernstein": bernstein,
}
