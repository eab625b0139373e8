"""The recipe's limits on what is measured: where a rule cuts, so that a chart can draw it."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ..config import CurationStages
from ..filters.base import Filter as Rule
from ..filters.captions import CaptionLength
from ..filters.pictures import Aspect, Contrast, Sides
from ..filters.scores import Score
from .measures import KNOWN_SCORES


@dataclasses.dataclass(frozen=True)
class Limit:
    """A sample goes when its value is `side` ("below", "above" or "up to") `value`."""

    value: float
    side: str
    what: str = "dropped"

    SIDES: ClassVar[Mapping[str, Callable[[Any, Any], Any]]] = {
        "below": operator.lt,
        "above": operator.gt,
        "up to": operator.le,
    }

    @property
    def name(self) -> str:
        """For a legend."""
        return f"{self.what} {self.side} {self.value:g}"

    def beyond(self, values: np.ndarray) -> int:
        """How many of float [n] the limit concerns; NaN never."""
        return int(self.SIDES[self.side](values, self.value).sum())


# Rule -> the measure that it looks at, and its options with what they are limits of.
RULES: Mapping[type[Rule], tuple[str, Mapping[str, str]]] = {
    Sides: ("short_side", {"min": "below"}),
    Aspect: ("aspect", {"max": "above"}),
    Contrast: ("contrast", {"min": "below"}),
    CaptionLength: ("words", {"min_words": "below"}),
}


def limits(stages: CurationStages) -> dict[str, list[Limit]]:
    """Measure -> the limits that the recipe sets on it."""
    found: dict[str, list[Limit]] = {}
    for name, limit in _all(stages):
        found.setdefault(name, [])
        if limit not in found[name]:
            found[name].append(limit)
    return found


def rules(stages: CurationStages) -> Sequence[Rule]:
    """The rules of the filter stage, none without one."""
    return stages["filter"].rules() if "filter" in stages.root else []  # type: ignore[attr-defined]


def score_name(rule: Score) -> str:
    """What a rule's score is called among the measures."""
    known = (name for name, facts in KNOWN_SCORES.items() if facts[0].columns == rule.columns)
    return next(known, rule.use)


def _all(stages: CurationStages) -> Iterator[tuple[str, Limit]]:
    for rule in rules(stages):
        if isinstance(rule, Score):
            bounds = {"min": "below", "max": "above"}
            yield from ((score_name(rule), limit) for limit in _of(rule, bounds) if np.isfinite(limit.value))
        for kind, (measure, options) in RULES.items():
            if isinstance(rule, kind):
                yield from ((measure, limit) for limit in _of(rule, options))
    told = {stage.name: stage.model_dump() for stage in stages}
    if (duplicates := told.get("deduplicate")) and duplicates["hash_radius"] and duplicates["min_hash_quality"] > 0:
        yield "pdq_quality", Limit(duplicates["min_hash_quality"], "below", "hash not compared")
    if leaks := told.get("decontaminate"):
        yield "leak_bits", Limit(leaks["radius"], "up to")
    if (checked := told.get("check_captions")) and "recaption" in told and checked["source"] != "ingest":
        for options in checked["rules"]:
            if options["name"] == "length":
                yield "new_words", Limit(options["min_words"], "below")
                yield "new_words", Limit(options["max_words"], "above")


def _of(rule: Rule, options: Mapping[str, str]) -> Iterator[Limit]:
    for option, side in options.items():
        yield Limit(getattr(rule, option), side)
