"""Two models' predictions of one suite, item by item: what the gate and `compare` look at. Loads no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from megavlm.platform.errors import InputError

from .intervals import CONTINUITY, score_interval
from .predictions import Prediction, accuracy

Pair = tuple[Prediction, Prediction]


@dataclasses.dataclass(frozen=True)
class Paired:
    """One suite's items before and after.

    `drops` float64 [k] are the different values of (before - after), in [-1, 1]; `counts` [k] how many items have each.
    """

    before: float
    after: float
    drops: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, baseline: Sequence[Prediction], new: Sequence[Prediction], suite: str = "") -> Paired:
        """Raises InputError when the two are not about the same items; `suite` is said in it."""
        return cls.of_pairs(pairs_of(baseline, new, suite))

    @classmethod
    def of_pairs(cls, pairs: Sequence[Pair]) -> Paired:
        """Of what `pairs_of` found."""
        drops, counts = np.unique([old.value - now.value for old, now in pairs], return_counts=True)
        return cls(accuracy([old for old, _ in pairs]), accuracy([now for _, now in pairs]), drops, counts)

    @property
    def items(self) -> int:
        """How many there are."""
        return int(self.counts.sum())

    @property
    def lost(self) -> int:
        """Items that are worth less than before; where items are right or wrong, those now wrong."""
        return int(self.counts[self.drops > 0].sum())

    @property
    def gained(self) -> int:
        """Items that are worth more than before."""
        return int(self.counts[self.drops < 0].sum())

    @property
    def drop(self) -> float:
        """Mean of before - after."""
        return float(self.counts @ self.drops / self.items)

    def interval(self, confidence: float, scale: float = 1.0, *, alone: bool = True) -> tuple[float, float]:
        """Two-sided interval of the drop; of `scale` times as many items at the same rates.

        Where items are right or wrong the drop of a suite `alone` moves in steps, which its interval allows for; shares
        and averages have no such steps.
        """
        steps = alone and bool(np.all(self.drops == np.rint(self.drops)))
        continuity = CONTINUITY if steps else 0.0
        low, high = score_interval(self.drops, self.counts * scale, confidence, continuity=continuity)
        return float(low), float(high)


def pairs_of(baseline: Sequence[Prediction], new: Sequence[Prediction], suite: str = "") -> list[Pair]:
    """Every item's two predictions, by id; raises InputError when the two are not about the same items."""
    said = f" of suite '{suite}'" if suite else ""
    before, after = _by_id(baseline, f"baseline{said}"), _by_id(new, f"new{said}")
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())
        raise InputError(
            f"{len(odd)} items{said} are in only one of the two sets of predictions, such as '{odd[0]}'",
            where=f"baseline has {len(before)} items, new has {len(after)}",
            fix="evaluate both on the same items",
        )
    if not before:
        raise InputError(f"no items{said} to compare", fix="name a set with samples in it")
    pairs = [(before[key], after[key]) for key in sorted(before)]
    for old, now in pairs:
        if old.expected != now.expected:
            raise InputError(
                f"item '{old.id}'{said} expects '{old.expected}' in the baseline and '{now.expected}' now",
                fix="the set changed between the two evaluations: evaluate both again with --fresh",
            )
    return pairs


def _by_id(predictions: Sequence[Prediction], which: str) -> dict[str, Prediction]:
    table: dict[str, Prediction] = {}
    for item in predictions:
        if item.id in table:
            raise InputError(
                f"item '{item.id}' is given twice", where=f"{which} predictions", fix="ids of a set must be unique"
            )
        table[item.id] = item
    return table
