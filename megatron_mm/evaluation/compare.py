"""Several models against the first of them, item by item: what `megavlm compare` tells. Loads no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from megavlm.platform.errors import InputError

from .average import mean_drop
from .found import suites_in
from .pairs import Pair, Paired, pairs_of
from .predictions import About, accuracy, read_about, read_predictions

Change = Literal["better", "worse", "unclear"]
EXAMPLES = 5  # of items that changed sides, each way


@dataclasses.dataclass(frozen=True)
class Difference:
    """By how much a model is better than the reference (negative: worse), with its interval, as shares.

    `lost`: items worth less than in the reference; `gained`: more. `change` is real where the interval leaves out 0.
    """

    score: float
    difference: float
    low: float
    high: float
    lost: int
    gained: int

    @property
    def change(self) -> Change:
        """In one word."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "unclear"

    def to_json(self) -> dict[str, Any]:
        """Plain data under stable keys."""
        return dataclasses.asdict(self) | {"change": self.change}


@dataclasses.dataclass(frozen=True)
class Suite:
    """One suite: what the reference scores, by how much each other differs, and who has no predictions of it.

    `pairs` of (reference, other): every item's two predictions, for examples. Empty where the reference is missing.
    """

    metric: str
    items: int
    reference: float | None
    others: dict[str, Difference]
    missing: tuple[str, ...]
    pairs: Mapping[str, Sequence[Pair]]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """`names[0]` is the reference. `mean` is over the suites in `averaged`: those that every model has."""

    names: tuple[str, ...]
    suites: dict[str, Suite]
    averaged: tuple[str, ...]
    reference_mean: float | None
    mean: dict[str, Difference]
    confidence: float

    def to_json(self) -> dict[str, Any]:
        """Plain data under stable keys; a missing figure is null."""
        return {
            "reference": self.names[0],
            "models": list(self.names),
            "confidence": self.confidence,
            "suites": {
                name: {
                    "metric": suite.metric,
                    "items": suite.items,
                    "reference": suite.reference,
                    "compared": {other: told.to_json() for other, told in suite.others.items()},
                    "missing": list(suite.missing),
                }
                for name, suite in self.suites.items()
            },
            "mean": {
                "suites": list(self.averaged),
                "reference": self.reference_mean,
                "compared": {other: told.to_json() for other, told in self.mean.items()},
            },
        }


def compare(folders: Mapping[str, Path], only: Sequence[str] = (), confidence: float = 0.95) -> Comparison:
    """Compare the predictions in `folders` (name -> folder) with those of the first; `only` names suites, else all.

    Raises InputError where a suite was asked differently, naming how, where its items are others, where nobody has it,
    and where no two models have one in common.
    """
    names = tuple(folders)
    found = {name: suites_in(folder) for name, folder in folders.items()}
    there = sorted({suite for files in found.values() for suite in files})
    for suite in only:
        if suite not in there:
            raise InputError(f"nobody has predictions of suite '{suite}'", fix=f"there are: {', '.join(there)}")
    suites = {suite: _suite(suite, names, found, confidence) for suite in (only or there)}
    if not any(suite.others for suite in suites.values()):
        fix = "; ".join(f"{name} has {', '.join(files) or 'none'}" for name, files in found.items())
        raise InputError(f"no suite of '{names[0]}' is one of another's", fix=fix)
    averaged = tuple(name for name, suite in suites.items() if not suite.missing)
    mean = {
        other: _mean([Paired.of_pairs(suites[name].pairs[other]) for name in averaged], confidence)
        for other in names[1:]
        if averaged
    }
    scores = [score for name in averaged if (score := suites[name].reference) is not None]
    reference = fmean(scores) if scores else None
    return Comparison(names, suites, averaged, reference, mean, confidence)


def _suite(suite: str, names: Sequence[str], found: Mapping[str, Mapping[str, Path]], confidence: float) -> Suite:
    here = [name for name in names if suite in found[name]]
    abouts = {name: read_about(found[name][suite]) for name in here}
    first = here[0]
    for name in here[1:]:
        _check_alike(suite, first, name, abouts)
    items = {name: read_predictions(found[name][suite]) for name in here}
    reference = items.get(names[0])
    missing = tuple(name for name in names if name not in here)
    pairs = {name: pairs_of(reference, items[name], suite) for name in here if name != names[0]} if reference else {}
    paired = {name: Paired.of_pairs(told) for name, told in pairs.items()}
    return Suite(
        metric=abouts[first].metric,
        items=len(items[first]),
        reference=accuracy(reference) if reference else None,
        others={name: _mean([told], confidence) for name, told in paired.items()},
        missing=missing,
        pairs=pairs,
    )


def _check_alike(suite: str, first: str, other: str, abouts: Mapping[str, About]) -> None:
    if how := abouts[first].differs(abouts[other]):
        raise InputError(
            f"suite '{suite}' was asked differently: {how}",
            where=f"'{first}' and '{other}'",
            fix="evaluate both alike, or leave the suite out with --suites",
        )


def _mean(paired: Sequence[Paired], confidence: float) -> Difference:
    low, high = mean_drop(paired, confidence)
    return Difference(
        score=fmean(suite.after for suite in paired),
        difference=-fmean(suite.drop for suite in paired),
        low=-high,
        high=-low,
        lost=sum(suite.lost for suite in paired),
        gained=sum(suite.gained for suite in paired),
    )
