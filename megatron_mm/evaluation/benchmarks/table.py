"""The table of benchmarks: what each is called in its library, where its data lie, how an item is judged. No torch."""

from __future__ import annotations

import functools
from importlib.resources import files
from typing import Literal

from megavlm.platform.config import Config
from megavlm.platform.config.tree import parse_yaml
from megavlm.platform.errors import ConfigError, did_you_mean

GROUPS = ("language", "vl")  # a group's name asks for all of its benchmarks


class Metric(Config):
    """How an item's answer becomes a number in [0, 1]; higher is better in every benchmark of the table."""

    key: str  # of the library's task
    also: list[str] = []  # further keys of the same: the task files an item under one of them
    filter: str | None = None  # lm-eval's answer filter
    scorer: str = "number"  # a name of SCORERS; lm-eval's tasks always use their own
    scale: float = 1.0  # the largest value of an item as the library gives it
    shares: bool = False  # whether an item can be partly right
    says: str = ""  # what it counts, for people


class Images(Config):
    """Images in a configuration of their own: `key` of a question is `column` there."""

    configuration: str
    key: str
    column: str


class Columns(Config):
    """Where a row's own columns hold what is asked, and the library's task is not needed to build it."""

    question: str
    image: str


class Benchmark(Config):
    """One benchmark. `lacks` says what cannot be had: hidden answers, a judge model."""

    name: str
    title: str
    group: Literal["language", "vl"]
    harness: Literal["lm-eval", "lmms-eval"]
    folder: str  # of the library's tasks/
    tasks: list[str]
    repository: str  # of the hub, as ORG/NAME
    configuration: str | None = None  # null: the only one, or all
    split: str
    metric: Metric
    code: bool = False  # answers are programs, which run in the sandbox alone
    answer: str | None = None  # column that shows the expected answer; null: what the task calls its target
    kind: str | None = None  # key of the item's category, in its result or its row
    unit: str | None = None  # column whose equal values make one item of several rows
    modulo: int | None = None  # ... after division by this
    gap: str = ""  # what the library's task itself puts between a question and the text after it
    only: dict[str, str] = {}  # rows with these values alone
    images: Images | None = None
    columns: Columns | None = None
    total: Literal["mean", "sum", "mme", "f1"] = "mean"  # how its published score is made of items
    lacks: list[str] = []
    papers: list[str] = []  # whose tables it stands in

    @property
    def task(self) -> str:
        """The library's task, or group of tasks."""
        return self.tasks[0]


@functools.cache
def benchmarks() -> dict[str, Benchmark]:
    """Every benchmark by name, in the table's order."""
    text = files(__package__).joinpath("table.yaml").read_text(encoding="utf-8")
    rows = parse_yaml(text, where="benchmarks/table.yaml")
    return {name: Benchmark.parse({"name": name, **row}, where=name) for name, row in rows.items()}


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of this name; raises ConfigError with the nearest one."""
    table = benchmarks()
    if name not in table:
        raise ConfigError(f"unknown benchmark '{name}'", where="suite", fix=did_you_mean(name, table))
    return table[name]


def is_benchmark(suite: str) -> bool:
    """Whether a suite is a benchmark or a group of them, not a held-out set."""
    return suite in GROUPS or suite in benchmarks()


def in_suite(suite: str) -> list[Benchmark]:
    """The benchmarks of a group, or the one of that name; raises ConfigError with the nearest name."""
    table = benchmarks()
    if suite in GROUPS:
        return [row for row in table.values() if row.group == suite]
    if suite not in table:
        raise ConfigError(f"unknown suite '{suite}'", where="suite", fix=did_you_mean(suite, [*GROUPS, *table]))
    return [table[suite]]
