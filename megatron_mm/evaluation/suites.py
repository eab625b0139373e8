"""Which suites there are, and on which set of a recipe each is asked. Loads no torch."""

from __future__ import annotations

from megavlm.platform.errors import ConfigError, did_you_mean

from ..config import Stages
from . import SUITES
from .benchmarks.table import GROUPS, benchmarks, in_suite


def check_suite(suite: str) -> None:
    """Raise ConfigError with the nearest name for what is neither a held-out suite nor a benchmark."""
    if suite not in SUITES and suite not in benchmarks():
        known = [*SUITES, *GROUPS, *benchmarks()]
        raise ConfigError(f"unknown suite '{suite}'", where="suite", fix=did_you_mean(suite, known))


def expanded(suite: str) -> list[str]:
    """The suites that a name means: a group's benchmarks, or itself; raises ConfigError for an unknown one."""
    if suite in GROUPS:
        return [benchmark.name for benchmark in in_suite(suite)]
    check_suite(suite)
    return [suite]


def set_of_suite(stages: Stages, stage: str, suite: str) -> str:
    """The set a stage is evaluated on in a suite: its own, or that of another stage. Raises ConfigError for none."""
    check_suite(suite)
    named = [stages[stage].evaluate, *(each.evaluate for _, each in stages.items())]
    for sets in named:
        if suite in sets:
            return sets[suite]
    raise ConfigError(
        f"no stage of this run names a set for suite '{suite}'",
        where=f"stages.{stage}.evaluate",
        fix="give the set with --set NAME",
    )


def gate_sets(stages: Stages, name: str) -> dict[str, str]:
    """Suite -> set of all that a gate compares: its own word first. Raises ConfigError for a suite without a set."""
    gate = stages.gates[name]
    return {s: gate.evaluate.get(s) or set_of_suite(stages, gate.judges, s) for s in gate.gate.suites}
