"""The schema of a search: which candidates may stand in the list under one key of a recipe. Loads no torch."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection
from typing import Any, Literal

from pydantic import PositiveInt, field_validator, model_validator

from megavlm.platform.config import Config
from megavlm.platform.errors import ConfigError, did_you_mean

Combination = tuple[str, ...]  # candidates by name, in the order of `candidates`


class Search(Config):
    """In place of a study's variants: which of the candidates, as the list under one key of the recipe, do best."""

    over: str  # a key of the recipe whose value is a list, such as model.encoder.use
    candidates: list[Any]  # its possible items; the list is always in this order, whatever came in first
    start: list[Any] | PositiveInt = 1  # the set to begin with, or so many candidates: those best by themselves
    score: str | list[str]  # a name of the study's scores, or several: their mean
    better: Literal["higher", "lower"] | None = None  # none: higher, which only a suite's score lets be left out
    until: Literal["no_gain"] | PositiveInt = "no_gain"  # or so many rounds at most

    @field_validator("candidates")
    @classmethod
    def _told_apart(cls, items: list[Any]) -> list[Any]:
        again = next((name for name, count in Counter(map(label, items)).items() if count > 1), None)
        if again is not None or len(items) < 2:
            what = f"'{again}' is given twice" if again is not None else f"{len(items)} candidates leave no choice"
            raise ConfigError(what, where="candidates", fix="give at least two, each once")
        return items

    @model_validator(mode="after")
    def _can_be_done(self) -> Search:
        if not self.scores:
            raise ConfigError("score names nothing", where="score", fix="name one of the study's scores")
        given = self.given
        if unknown := next((name for name in given if name not in self.names), None):
            fix = did_you_mean(unknown, self.names)
            raise ConfigError(f"'{unknown}' is no candidate", where="start", fix=fix)
        if isinstance(self.start, list) and not 0 < len(set(given)) == len(given):
            fix = "name each once; a number begins with that many candidates"
            raise ConfigError(f"start cannot be {self.start!r}", where="start", fix=fix)
        if self.first > len(self.candidates):
            fix = f"at most {len(self.candidates)}"
            raise ConfigError(f"the best {self.start} of {len(self.candidates)} candidates", where="start", fix=fix)
        return self

    @property
    def names(self) -> list[str]:
        """The candidates' names."""
        return [label(item) for item in self.candidates]

    @property
    def given(self) -> list[str]:
        """The names of the set to begin with; empty where it is to be found first."""
        return [label(item) for item in self.start] if isinstance(self.start, list) else []

    @property
    def first(self) -> int:
        """How many candidates the search begins with."""
        return len(self.start) if isinstance(self.start, list) else self.start

    @property
    def scores(self) -> list[str]:
        """The names of the scores whose mean decides."""
        return [self.score] if isinstance(self.score, str) else self.score

    def ordered(self, names: Collection[str]) -> Combination:
        """These candidates in the order of `candidates`: the order of channels must not tell who came in first."""
        return tuple(name for name in self.names if name in names)

    def values(self, combination: Combination) -> list[Any]:
        """What stands under `over` for this combination."""
        return [item for item in self.candidates if label(item) in combination]

    def rank(self, score: float | None) -> float:
        """Larger is better; what has no score is worse than all that have one."""
        if score is None or math.isnan(score):
            return -math.inf
        return -score if self.better == "lower" else score


def label(value: Any) -> str:
    """What names a value in the name of a variant: a point's name, or the value itself, fit for a folder."""
    named = value.get("name", value) if isinstance(value, dict) else value
    return re.sub(r"[^\w.-]+", "-", named if isinstance(named, str) else json.dumps(named)).strip("-")


def called(combination: Combination) -> str:
    """The name of a combination's variant, and of the folder of its trainings."""
    return "_".join(combination)
