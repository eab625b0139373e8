"""The paired gate: is a model still as good as its baseline, on each suite and on their average? Loads no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from megavlm.platform.errors import ConfigError, InputError

from .average import mean_drop, shared_confidence
from .gate_result import EXIT_CODES, Drop, GateResult, Verdict
from .pairs import Paired
from .predictions import Prediction

Sides = tuple[Sequence[Prediction], Sequence[Prediction]]
__all__ = ["EXIT_CODES", "Drop", "GateResult", "Verdict", "gate_of", "paired_gate"]
MOST_ITEMS = 1_000_000_000  # beyond this the honest answer is that items alone decide nothing


def paired_gate(
    baseline: Sequence[Prediction],
    new: Sequence[Prediction],
    *,
    max_drop: float,
    confidence: float = 0.95,
    suite: str = "suite",
) -> GateResult:
    """Compare two sets of predictions of one suite item by item.

    Pass when the upper end of the drop's two-sided interval (intervals.py) is <= max_drop, fail when its lower end is
    > max_drop, undecided between. Raises InputError when the two are not about the same items, ConfigError on limits
    that are no fractions.
    """
    return gate_of({suite: (baseline, new)}, max_drop=max_drop, confidence=confidence)


def gate_of(
    suites: Mapping[str, Sides], *, max_drop: float, max_drop_each: float | None = None, confidence: float = 0.95
) -> GateResult:
    """Compare (baseline, new) of every suite, by the average of their drops and, with `max_drop_each`, by each of them.

    Fail when the lower end of the average or of a suite is beyond what is allowed, pass when every upper end is within,
    undecided between. With `max_drop_each` the lower ends share one level among the suites and the average, so that a
    model at its limits everywhere fails as rarely as with one suite. A pass needs no such care: all have to be within.
    Raises as paired_gate does.
    """
    _check_limits({"max_drop": max_drop, "max_drop_each": max_drop_each}, confidence)
    if not suites:
        raise InputError("no suites to compare", fix="name one at least")
    if len(suites) == 1 and max_drop_each is not None:
        max_drop, max_drop_each = min(max_drop, max_drop_each), None  # the average is the suite
    paired = {
        name: Paired.of(before, after, name if len(suites) > 1 else "") for name, (before, after) in suites.items()
    }

    def judged(scale: float) -> tuple[Verdict, Drop, dict[str, Drop]]:
        return _judged(paired, scale, max_drop, max_drop_each, confidence)

    verdict, mean, each = judged(1.0)
    needed = None
    if verdict == "undecided":
        needed = _fewest(lambda items: judged(items / mean.items)[0] != "undecided", mean.items)
    if needed:
        each = {
            n: dataclasses.replace(d, items_needed=math.ceil(d.items * needed / mean.items)) for n, d in each.items()
        }
    own = {f.name: getattr(mean, f.name) for f in dataclasses.fields(Drop) if f.name not in {"low_shared", "verdict"}}
    return GateResult(
        **own | {"items_needed": needed},
        verdict=verdict,
        confidence=confidence,
        max_drop_each=max_drop_each,
        suites=each,
        mean=dataclasses.replace(mean, items_needed=needed),
    )


def _judged(
    paired: Mapping[str, Paired], scale: float, max_drop: float, max_drop_each: float | None, confidence: float
) -> tuple[Verdict, Drop, dict[str, Drop]]:
    """The verdict on `scale` times as many items, the average, and every suite."""
    shared = confidence if max_drop_each is None else shared_confidence(confidence, len(paired) + 1)
    raw = {name: _drop(suite, scale, confidence, shared) for name, suite in paired.items()}
    (first, *more) = raw.values()
    mean = (_average(list(paired.values()), scale, confidence, shared) if more else first).judged(max_drop)
    each = {name: drop.judged(max_drop_each) for name, drop in raw.items()}
    said = {drop.verdict for drop in [mean, *each.values()] if drop.verdict}
    worst: list[Verdict] = ["fail", "undecided", "pass"]
    return next(verdict for verdict in worst if verdict in said), mean, each


def _drop(suite: Paired, scale: float, confidence: float, shared: float) -> Drop:
    low, high = suite.interval(confidence, scale)
    return Drop(
        items=suite.items,
        lost=suite.lost,
        gained=suite.gained,
        accuracy_before=suite.before,
        accuracy_after=suite.after,
        drop=suite.drop,
        drop_low=low,
        drop_high=high,
        low_shared=low if shared == confidence else suite.interval(shared, scale)[0],
    )


def _average(suites: Sequence[Paired], scale: float, confidence: float, shared: float) -> Drop:
    """Numbers of items are sums, shares averages."""
    (low, high), (low_shared, _) = (mean_drop(suites, level, scale) for level in (confidence, shared))
    return Drop(
        items=sum(suite.items for suite in suites),
        lost=sum(suite.lost for suite in suites),
        gained=sum(suite.gained for suite in suites),
        accuracy_before=fmean(suite.before for suite in suites),
        accuracy_after=fmean(suite.after for suite in suites),
        drop=fmean(suite.drop for suite in suites),
        drop_low=low,
        drop_high=high,
        low_shared=low_shared,
    )


def _fewest(decided: Callable[[int], bool], items: int) -> int | None:
    enough = max(items, 1)
    while not decided(enough):
        if enough > MOST_ITEMS:
            return None
        enough *= 2
    short = enough // 2
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (short, middle) if decided(middle) else (middle, enough)
    return enough


def _check_limits(limits: Mapping[str, float | None], confidence: float) -> None:
    for name, limit in limits.items():
        if limit is not None and not 0 <= limit < 1:
            raise ConfigError(f"{name} {limit} is no fraction", where=name, fix="0.02 tolerates two points of accuracy")
    if not 0.5 <= confidence < 1:
        raise ConfigError(f"confidence {confidence} is not in [0.5, 1)", where="confidence", fix="0.95 is usual")
