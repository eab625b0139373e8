"""The schema of a study: its question, the variants of a recipe, what is read from their runs. Loads no torch."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from megavlm.platform.config import Config
from megavlm.platform.errors import ConfigError, did_you_mean
from megavlm.platform.executor import EXECUTORS, Executor, make

from .rounds import next_round
from .score import Score
from .search import Combination, Search, called, label

NAME = r"^\w[\w.-]*$"  # names a folder
Quantity = Literal["samples", "steps", "tokens"]


class Variant(Config):
    """One row of the table: the recipe with these overrides, written `a.b=c` as on the command line."""

    name: str = Field(pattern=NAME)
    recipe: str | None = None  # in place of the study's
    against: str | None = None  # the variant that it is compared with, in place of the study's reference
    overrides: list[str] = []
    stages: list[str] = []  # the recipe's stages to run, optional ones too; none: the study's


class Published(Config):
    """A table of somebody else's, kept apart from ours: other data, another size."""

    title: str
    source: str  # paper, number of the table
    note: str = ""  # in what it differs from ours
    columns: list[str]
    rows: dict[str, list[float | int | str | None]]

    @model_validator(mode="after")
    def _rectangular(self) -> Published:
        for name, cells in self.rows.items():
            if len(cells) != len(self.columns):
                raise ConfigError(
                    f"row '{name}' has {len(cells)} values under {len(self.columns)} columns",
                    where=f"rows.{name}",
                    fix="give one value for each column, null where there is none",
                )
        return self


class ExecutorChoice(Config):
    """Who runs the trainings: a name of platform's EXECUTORS, and how many side by side."""

    name: str = "local"
    workers: PositiveInt = 1
    cluster: str | None = None  # a cluster profile, for the executors that run on one

    def make(self) -> Executor:
        """The executor; raises ConfigError for an unknown name, or options it does not take."""
        return make(EXECUTORS, self.name, "executor", **({"cluster": self.cluster} if self.cluster else {}))


class Study(Config):
    """A question, the variants of a recipe that answer it, and the published answer."""

    name: str = Field(pattern=NAME)
    question: str
    recipe: str  # a shipped recipe's name, or a file beside this one
    overrides: list[str] = []  # of every variant, before its own
    variants: list[Variant] = []
    grid: dict[str, list[Any]] = {}  # in place of variants: every combination of these keys' values
    search: Search | None = None  # in place of both: round after round, the variants that the rounds before tell
    stages: list[str] = []  # the recipe's stages to run; none: all that are not optional
    seeds: list[NonNegativeInt] = [1]
    scores: dict[str, Score]
    reference: str | None = None  # the variant that the others are compared with; none: the first
    rank: list[str] = []  # two scores and more: whether the others order the variants as the first does
    equal: list[Quantity] = ["samples"]  # what all variants must have seen the same number of
    published: list[Published] = []
    executor: ExecutorChoice = ExecutorChoice()

    @field_validator("variants", "published", mode="before")
    @classmethod
    def _items(cls, items: Any, info: Any) -> Any:
        """Each parsed on its own, so that an error names the item that it is in."""
        kind = Variant if info.field_name == "variants" else Published
        return [_item(kind, item, f"{info.field_name}.{k}") for k, item in enumerate(_as(list, items, info.field_name))]

    @field_validator("search", mode="before")
    @classmethod
    def _search(cls, search: Any) -> Any:
        return None if search is None else _item(Search, search, "search")

    @field_validator("scores", mode="before")
    @classmethod
    def _by_name(cls, scores: Any) -> Any:
        return {name: _item(Score, score, f"scores.{name}") for name, score in _as(dict, scores, "scores").items()}

    @model_validator(mode="after")
    def _variants_or_grid(self) -> Study:
        if (given := [bool(self.variants), bool(self.grid), self.search is not None].count(True)) != 1:
            raise ConfigError(
                "the variants are given " + ("twice" if given else "nowhere"),
                where="variants",
                fix="give either variants: [{name: ..., overrides: [...]}], grid: {KEY: [VALUES]} or search: {...}",
            )
        if empty := next((key for key, values in self.grid.items() if not values), None):
            raise ConfigError(f"grid key '{empty}' has no value", where=f"grid.{empty}", fix="give a list of values")
        return self

    @model_validator(mode="after")
    def _something_to_compare(self) -> Study:
        for key, found in (("scores", len(self.scores)), ("seeds", len(self.seeds))):
            if not found:
                raise ConfigError(f"{key} is empty", where=key, fix="give at least one")
        if twice := _repeated(self.seeds):
            raise ConfigError(f"seed {twice[0]} is given twice", where="seeds", fix="give each seed once")
        names = [variant.name for variant in self.rows()]
        if again := _repeated(names):
            raise ConfigError(f"two variants are called '{again[0]}'", where="variants", fix="give each its own name")
        against = {f"variants.{row.name}.against": row.against for row in self.rows()}
        for where, name in {"reference": self.reference, **against}.items():
            if name not in {None, *names}:
                fix = did_you_mean(str(name), names)
                raise ConfigError(f"reference '{name}' is no variant", where=where, fix=fix)
        return self

    @model_validator(mode="after")
    def _search_has_scores(self) -> Study:
        for name in self.search.scores if self.search else ():
            if name not in self.scores:
                fix = did_you_mean(name, self.scores)
                raise ConfigError(f"'{name}' is no score of the study", where="search.score", fix=fix)
            if self.scores[name].metric and self.search and self.search.better is None:
                fix = "set search.better=higher or search.better=lower"
                raise ConfigError(f"whether more of '{name}' is better", where="search.better", fix=fix)
        return self

    @model_validator(mode="after")
    def _ranks_scores(self) -> Study:
        if self.rank and (len(self.rank) == 1 or _repeated(self.rank)):
            fix = "name two scores, each once: rank: [text, kl]"
            raise ConfigError(f"rank {self.rank} leaves nothing to compare", where="rank", fix=fix)
        if unknown := next((name for name in self.rank if name not in self.scores), None):
            fix = did_you_mean(unknown, self.scores)
            raise ConfigError(f"'{unknown}' is no score of the study", where="rank", fix=fix)
        return self

    def rows(self) -> list[Variant]:
        """The variants, in the order of the table; those of a grid are called after keys and values.

        Of a search: those of its first round. The later ones are made known with `tried`.
        """
        if self.variants:
            return self.variants
        if self.search:
            return [_of_search(self.search, names) for names in next_round(self.search, [])]
        return [
            _of_grid(dict(zip(self.grid, values, strict=True))) for values in itertools.product(*self.grid.values())
        ]

    def compared_with(self, row: Variant) -> str:
        """The name of the variant that a row is compared with; its own where there is nothing to compare it with."""
        return row.against or self.reference or self.rows()[0].name

    def tried(self, combinations: Iterable[Combination]) -> Study:
        """The study of a search, with these combinations as its variants."""
        assert self.search
        return self.model_copy(update={"variants": [_of_search(self.search, names) for names in combinations]})


def _of_search(search: Search, names: Combination) -> Variant:
    return Variant(name=called(names), overrides=[f"{search.over}={json.dumps(search.values(names))}"])


def _of_grid(values: dict[str, Any]) -> Variant:
    name = "_".join(f"{key.rpartition('.')[2]}-{label(value)}" for key, value in values.items())
    return Variant(name=name, overrides=[f"{key}={json.dumps(value)}" for key, value in values.items()])


def _item(kind: type[Config], value: Any, where: str) -> Config:
    return value if isinstance(value, kind) else kind.parse(value, where=where)


def _as(kind: type[list[Any]] | type[dict[str, Any]], value: Any, where: str) -> Any:
    if not isinstance(value, kind):
        fix = f"write {where} as a list of mappings" if kind is list else f"write {where} as NAME: {{...}}"
        raise ConfigError(f"{where} cannot be {value!r}", where=where, fix=fix)
    return value


def _repeated(items: list[Any]) -> list[Any]:
    return [item for item, count in Counter(items).items() if count > 1]
