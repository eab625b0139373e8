"""Score interval of the mean of paired differences in [-1, 1]. Loads no torch.

For differences of -1, 0 and 1 alone it is that of T. Tango (1998), "Equivalence test and confidence interval for the
difference in proportions for the paired-sample design", Statistics in Medicine 17, 891-908, equations (5)-(8).

For shares it is the same construction: a mean m stands in the interval unless |observed mean - m| exceeds z standard
errors, those of the distribution that, of all on [-1, 1] with mean m, makes the data most likely. That one is known (A.
B. Owen (2001), "Empirical Likelihood", chapter 2; with bounds: J. Honda and A. Takemura (2010), "An asymptotically
optimal bandit algorithm for bounded support models", section 3): n_i / (n (1 + a (x_i - m))) at what was seen, the rest
at an end of the range. Its variance is (observed mean - m) / a. No random numbers are drawn, and the interval does not
collapse when no pair differs.

Two corrections hold each end to its own half of the error where few pairs differ, most of them one way: of skewness,
by Cornish and Fisher's first term (P. J. Laud (2017), "Equal-tailed confidence intervals for comparison of rates",
Pharmaceutical Statistics 16, 334-348), and of continuity. benchmarks/campaigns/gate_rates.md measures both.
"""

from __future__ import annotations

import dataclasses
from statistics import NormalDist

import numpy as np

STEPS = 54  # of bisection: to the spacing of floating-point numbers
EPSILON = 2.0**-53
CONTINUITY = 0.5  # items: half of the step from one outcome to the next
Limits = tuple[np.ndarray, np.ndarray]


def tango_interval(lost: float, gained: float, items: float, confidence: float = 0.95) -> tuple[float, float]:
    """Tango's two-sided interval of the drop (lost - gained) / items, without corrections.

    `lost`: items right before and wrong after; `gained`: the reverse; the other `items - lost - gained` agree.
    Counts need not be whole, so that expected counts can be asked about. Raises ValueError for impossible counts.
    """
    if not (items > 0 and lost >= 0 and gained >= 0 and lost + gained <= items * (1 + 1e-12)):
        raise ValueError(f"impossible counts: {lost} lost, {gained} gained of {items}")
    counts = np.array([lost, max(items - lost - gained, 0.0), gained])
    low, high = score_interval(np.array([1.0, 0.0, -1.0]), counts, confidence, continuity=0.0, skewness=False)
    return float(low), float(high)


def score_interval(
    values: np.ndarray,
    counts: np.ndarray,
    confidence: float = 0.95,
    *,
    continuity: float = CONTINUITY,
    skewness: bool = True,
) -> Limits:
    """Two-sided interval of the mean of what was seen `counts` [..., k] times each at `values` [k], in [-1, 1].

    Counts need not be whole. Returns float64 (low, high), each [...]. Raises ValueError for what cannot be.
    """
    values, counts = np.asarray(values, np.float64), np.asarray(counts, np.float64)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    if np.any(np.abs(values) > 1) or np.any(counts < 0) or not np.all(counts.sum(-1) > 0):
        raise ValueError("impossible counts: values are in [-1, 1], counts at least 0, and not all of them 0")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    below, above = (_Seen(sign * values, counts, z, continuity, skewness).upper() for sign in (-1, 1))
    return -below, above


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What was seen, and the search for the largest mean that it does not refuse."""

    values: np.ndarray
    counts: np.ndarray
    z: float
    continuity: float
    skewness: bool

    def upper(self) -> np.ndarray:
        """By bisection along the likeliest distributions of ever larger means: `place` 0 is the observed mean.

        Up to place 1 all weight is on what was seen, n_i / (1 - place x_i); from there on also on the unseen value 1.
        """
        items = self.counts.sum(-1)
        mean = self.counts @ self.values / items
        square = self.counts @ self.values**2 / items - mean**2
        unseen = ~np.any((self.values >= 1) & (self.counts > 0), axis=-1)
        rest = self.counts @ np.where(self.values < 1, 1 / np.where(self.values < 1, 1 - self.values, 1.0), 0.0)
        edge = np.where(unseen, 1 - items / np.where(rest > 0, rest, 1.0), 1.0)
        # that nothing varies tells nothing of skewness: uncorrected, the end is wider than the exact one of n zeros
        plain = square <= 1e-15
        low, high, found = np.zeros_like(mean), np.where(unseen, 2.0, 1.0), np.ones_like(mean)
        for _ in range(STEPS):
            place = (low + high) / 2
            at, tilt = self._at(place, edge)
            beyond = self._refuses(items, mean, square, at, tilt, plain)
            low, high, found = np.where(beyond, low, place), np.where(beyond, place, high), np.where(beyond, at, found)
        return np.where(mean >= 1, 1.0, found)

    def _at(self, place: np.ndarray, edge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The mean m there, and -a."""
        tilt = np.minimum(place, 1 - EPSILON)
        weights = self.counts / (1 - tilt[..., None] * self.values)
        inside = weights @ self.values / weights.sum(-1)
        outside = edge + (place - 1) * (1 - edge)
        at = np.where(place < 1, inside, np.minimum(outside, 1 - EPSILON))
        return at, np.where(place < 1, tilt / (1 - tilt * at), 1 / np.maximum(1 - at, EPSILON))

    def _refuses(
        self,
        items: np.ndarray,
        mean: np.ndarray,
        square: np.ndarray,
        at: np.ndarray,
        tilt: np.ndarray,
        plain: np.ndarray,
    ) -> np.ndarray:
        """Whether the observed mean is too far below `at`, in standard errors of the likeliest distribution there."""
        away = np.maximum(at - mean, EPSILON * EPSILON)
        variance = away / np.maximum(tilt, EPSILON)
        error = np.sqrt(variance / items)
        third = (variance - square - away**2) / np.maximum(tilt, EPSILON)
        skew = np.where(plain | (not self.skewness), 0.0, third / variance / (error * items))
        step = np.where(plain, 0.0, self.continuity) / items
        # the first term alone overshoots where next to nothing is expected to be seen: no more than half is forgiven
        bar = np.maximum(self.z - (self.z**2 - 1) / 6 * skew, self.z / 2)
        return np.asarray(away - step >= bar * error)
