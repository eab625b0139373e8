"""Confidence interval of the difference of two paired proportions: Tango's score interval. Loads no torch.

Source: T. Tango (1998), "Equivalence test and confidence interval for the difference in proportions for the
paired-sample design", Statistics in Medicine 17, 891-908, equations (5)-(8). It needs no random numbers, holds its
level for small samples and near zero, and does not collapse when no pair is discordant.
"""

from __future__ import annotations

import math
from statistics import NormalDist

STEPS = 100  # of bisection: far below the spacing of floating-point numbers in [-1, 1]


def tango_interval(lost: float, gained: float, items: float, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval of the drop (lost - gained) / items.

    `lost`: items right before and wrong after; `gained`: the reverse; the other `items - lost - gained` agree.
    Counts need not be whole, so that expected counts can be asked about. Raises ValueError for impossible counts.
    """
    if not (items > 0 and lost >= 0 and gained >= 0 and lost + gained <= items * (1 + 1e-12)):
        raise ValueError(f"impossible counts: {lost} lost, {gained} gained of {items}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    drop = (lost - gained) / items
    # The score falls strictly from drop towards +1: the upper limit is where it crosses -z; the lower mirrors it.
    upper = _crossing(lost, gained, items, z, drop)
    lower = -_crossing(gained, lost, items, z, -drop)
    return lower, upper


def score(lost: float, gained: float, items: float, drop: float) -> float:
    """Tango's score statistic for a true drop of `drop` (-1 < drop < 1); standard normal when that is the truth."""
    variance = items * (2 * _gain_rate(lost, gained, items, drop) + drop * (1 - drop))
    difference = lost - gained - items * drop
    return (
        difference / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, difference) if difference else 0.0
    )


def _gain_rate(lost: float, gained: float, items: float, drop: float) -> float:
    """Maximum-likelihood probability of a gained item when the loss probability is larger by exactly `drop`."""
    a = 2 * items
    b = -lost - gained + (2 * items - lost + gained) * drop
    c = -gained * drop * (1 - drop)
    root = math.sqrt(max(b * b - 4 * a * c, 0.0))
    return max((root - b) / (2 * a), 0.0, -drop)


def _crossing(lost: float, gained: float, items: float, z: float, drop: float) -> float:
    low, high = drop, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if score(lost, gained, items, middle) > -z else (low, middle)
    return high
