"""The arithmetic of the table: shares with their interval, means over seeds with their spread, paired differences.

And whether two scores put the variants in the same order.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence
from statistics import NormalDist

from ..evaluation.gate import paired_gate
from ..evaluation.intervals import tango_interval
from ..evaluation.predictions import Prediction

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Value:
    """A mean over seeds. spread: the seeds' sample standard deviation, None for one seed.

    low, high: the interval that the number of items leaves, None for what has no items.
    """

    value: float
    spread: float | None
    low: float | None = None
    high: float | None = None
    items: int | None = None


def mean(
    values: Sequence[float], low: float | None = None, high: float | None = None, items: int | None = None
) -> Value:
    """A mean and its spread; raises statistics.StatisticsError for no values."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Value(statistics.fmean(values), spread, low, high, items)


def share(by_seed: Sequence[Sequence[Prediction]]) -> Value:
    """Share of items answered right. The seeds answer the same items: more of them make the interval no narrower."""
    shares = [sum(item.correct for item in items) / len(items) for items in by_seed]
    items = len(by_seed[0])
    return mean(shares, *wilson_interval(statistics.fmean(shares) * items, items), items)


def difference(reference: Sequence[Sequence[Prediction]], other: Sequence[Sequence[Prediction]]) -> Value:
    """By how much `other` is better, in paired items; seeds stand in the same order in both.

    The interval is Tango's for the mean numbers of items lost and gained. Raises InputError where the items differ.
    """
    pairs = [paired_gate(a, b, max_drop=0.0, confidence=CONFIDENCE) for a, b in zip(reference, other, strict=True)]
    lost, gained = (statistics.fmean([getattr(pair, name) for pair in pairs]) for name in ("lost", "gained"))
    low, high = tango_interval(lost, gained, pairs[0].items, CONFIDENCE)
    return mean([-pair.drop for pair in pairs], -high, -low, pairs[0].items)


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How two scores order the same variants. rho: Spearman's, of ties the mean rank; None where one is constant.

    alike, opposite: pairs of variants that both tell apart, in the same order and in the other one.
    """

    rho: float | None
    alike: int
    opposite: int
    variants: int


def agreement(one: Sequence[float], other: Sequence[float]) -> Agreement:
    """Spearman's rank correlation over variants, and the pairs behind it."""
    pairs = itertools.combinations(zip(one, other, strict=True), 2)
    signs = [(a[0] - b[0]) * (a[1] - b[1]) for a, b in pairs]
    varies = len(set(one)) > 1 and len(set(other)) > 1
    rho = statistics.correlation(_ranks(one), _ranks(other)) if varies else None
    return Agreement(rho, sum(sign > 0 for sign in signs), sum(sign < 0 for sign in signs), len(one))


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2 for value in values]


def wilson_interval(right: float, items: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Score interval of a proportion; `right` need not be whole. Raises ValueError for impossible counts.

    Source: E. B. Wilson (1927), "Probable inference, the law of succession, and statistical inference", Journal of the
    American Statistical Association 22, 209-212.
    """
    if not 0 <= right <= items * (1 + 1e-12) or items < 1:
        raise ValueError(f"impossible counts: {right} right of {items}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = min(right / items, 1.0)
    middle = rate + z * z / (2 * items)
    half = z * math.sqrt(rate * (1 - rate) / items + z * z / (4 * items * items))
    scale = 1 + z * z / items
    return max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0)
