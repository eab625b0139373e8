"""The average over suites, each of which counts alike, and what it costs to look at many. Loads no torch.

MOVER: the limits of a sum of independent estimates from their own limits, by squares, so that each suite keeps the
interval that fits it. Source: G. Y. Zou and A. Donner (2008), "Construction of confidence limits about effect measures:
a general approach", Statistics in Medicine 27, 1693-1702, equation (3).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .pairs import Paired


def mean_interval(drops: np.ndarray, lows: np.ndarray, highs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The interval of the average of independent estimates, each [suites, ...] with its own limits -> each [...]."""
    drops, lows, highs = (np.asarray(of, np.float64) for of in (drops, lows, highs))
    mean, suites = drops.mean(0), len(drops)
    below, above = (np.sqrt(((ends - drops) ** 2).sum(0)) / suites for ends in (lows, highs))
    return mean - below, mean + above


def mean_drop(suites: Sequence[Paired], confidence: float, scale: float = 1.0) -> tuple[float, float]:
    """The interval of the average drop of several suites; of `scale` times as many items of each. One stands alone."""
    if len(suites) == 1:
        return suites[0].interval(confidence, scale)
    lows, highs = zip(*(suite.interval(confidence, scale, alone=False) for suite in suites), strict=True)
    low, high = mean_interval(np.array([suite.drop for suite in suites]), np.array(lows), np.array(highs))
    return float(low), float(high)


def shared_confidence(confidence: float, claims: int) -> float:
    """Each one's confidence when `claims` claims are wrong together as rarely as one of `confidence` (Bonferroni).

    Whether any of them is refused is the same by Holm's steps, which only name more of them once one is.
    """
    return 1 - (1 - confidence) / claims
