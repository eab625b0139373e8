"""What a training run will be, and whether it can be: arithmetic on the recipe alone. Loads no torch."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megavlm.platform.config import Recipe
from megavlm.platform.errors import ConfigError, InputError

from ..config import ModelConfig, Parallel, Stage, Stages
from ..data.build import StageData
from ..data.sets import require_ratios, sets_of
from ..evaluation.benchmarks.protocols import find_protocol
from ..evaluation.suites import gate_sets
from ..layout import check_layout
from .checks import (
    check_asked,
    check_sets,
    check_sizes,
    check_start,
    check_suites,
    check_teacher,
    check_vocabulary,
    check_world,
    missing_here,
)
from .stages import chosen
from .watchers.base import check_watchers

Needs = Callable[[Recipe, str, bool], list[str]]


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """One stage in figures. tokens counts padded positions over all steps.

    packs_per_batch, tokens and micro_batches are None where only packing tells them: of batches of samples or tokens.
    A gate trains nothing: 0 steps, and the size of the model that it judges.
    """

    name: str
    parameters: int
    trained_parameters: int
    steps: int
    batch: str  # the size of a global batch, with its unit
    packs_per_batch: int | None
    sequence_length: int
    tokens: int | None
    tp: int
    pp: int
    dp: int
    micro_batches: int | None  # packs that a data-parallel rank works through in a step, at most
    precision: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """A checked run: `world` = `nodes` machines x `nproc` processes. `notes`: what will be made or is worth knowing."""

    recipe: str
    world: int
    nodes: int
    nproc: int
    stages: list[StagePlan]
    notes: list[str]

    def record(self) -> dict[str, Any]:
        """Plain data under stable keys."""
        return dataclasses.asdict(self)


def make_plan(
    recipe: Recipe,
    stage: str | None = None,
    nproc: int | None = None,
    nodes: int = 1,
    elsewhere: bool = False,
    shapes: bool = False,
) -> Plan:
    """Check all that can be known without torch; raises ConfigError or InputError at the first thing that cannot be.

    `nproc` processes on each of `nodes` machines; without it, `default_nproc`. `elsewhere`: this is none of those
    machines, so that what is not installed here is a note. `shapes`: only these matter, so that data, tokenizer and
    weights that are missing are a note.
    """
    stages: Stages = recipe.section("stages")
    names = chosen(stages, stage)
    for what, count in (("--nproc", nproc), ("--nodes", nodes)):
        if count is not None and count < 1:
            raise ConfigError(f"{what} {count} cannot train", where=what, fix="at least 1")
    nproc = nproc or default_nproc([stages.layout(name) for name in names], nodes)
    plans: list[StagePlan] = []
    notes: list[str] = []
    for name in names:
        check_world(name, stages.layout(name), nodes, nproc)
        plan, needs = (_plan_gate, _gate_needs) if name in stages.gates else (_plan_training, _training_needs)
        plans.append(plan(recipe, name, nodes * nproc, elsewhere))
        found = (_or_note if shapes else _strictly)(needs, recipe, name, elsewhere)
        notes += [note for note in found if note not in notes]
    return Plan(recipe.name, nodes * nproc, nodes, nproc, plans, notes)


def _strictly(needs: Needs, recipe: Recipe, name: str, elsewhere: bool) -> list[str]:
    return needs(recipe, name, elsewhere)


def _or_note(needs: Needs, recipe: Recipe, name: str, elsewhere: bool) -> list[str]:
    """The first thing that is missing as a note."""
    try:
        return needs(recipe, name, elsewhere)
    except (ConfigError, InputError) as error:
        return [f"stage '{name}' could not be trained here: {error.what}"]


def _plan_training(recipe: Recipe, name: str, world: int, elsewhere: bool) -> StagePlan:
    spec = StageData.of(recipe, name)
    check_sizes(name, spec.stage, spec.model, world, elsewhere)
    check_suites(name, spec.stage)
    check_watchers(recipe, name)
    return _stage_plan(name, spec.stage, spec.model, world)


def _training_needs(recipe: Recipe, name: str, elsewhere: bool) -> list[str]:
    """Data, tokenizer and weights: notes on what will be made; raises for what is missing."""
    spec = StageData.of(recipe, name)
    require_ratios(name, spec.stage, recipe.sources)
    check_vocabulary(spec)
    if not elsewhere:
        check_start(name, spec.stage)
        check_teacher(name, spec.stage, spec.model)
        spec.data.decoder.check()
    notes = check_sets(spec.data, sets_of(spec.stage)) + check_asked(spec.data, spec.stage.evaluate, elsewhere)
    return notes + (missing_here(spec.stage) if elsewhere else [])


def _gate_needs(recipe: Recipe, name: str, elsewhere: bool) -> list[str]:
    """The suites are known before hours of training: raises ConfigError for one that nobody names a set for."""
    return check_asked(recipe.section("data"), gate_sets(recipe.section("stages"), name), elsewhere)


def _plan_gate(recipe: Recipe, name: str, world: int, elsewhere: bool) -> StagePlan:
    stages: Stages = recipe.section("stages")
    gate, judged = stages.gates[name], StageData.of(recipe, stages.gates[name].judges)
    layout = stages.layout(name)
    check_layout(judged.model, layout)
    find_protocol(gate.protocol)
    return StagePlan(
        name=name,
        parameters=judged.model.parameter_counts()["total"],
        trained_parameters=0,
        steps=0,
        batch=f"judges {gate.judges} by {gate.gate.baseline} on {', '.join(gate.gate.suites)}",
        packs_per_batch=None,
        sequence_length=judged.stage.mixture.sequence_length,
        tokens=0,
        tp=layout.tp,
        pp=layout.pp,
        dp=world // layout.split,
        micro_batches=None,
        precision=judged.stage.precision,
    )


def default_nproc(layouts: Sequence[Parallel], nodes: int = 1) -> int:
    """The fewest processes per machine that all layouts divide; with GPUs, as many of them as that number divides."""
    split = math.lcm(*(layout.split for layout in layouts))
    smallest = split // math.gcd(split, nodes)
    return max(visible_gpus() // smallest, 1) * smallest


def visible_gpus() -> int:
    """NVIDIA devices this process may use, told from the environment and /dev, without torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return len([part for part in chosen.split(",") if part.strip() not in {"", "-1"}])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _stage_plan(name: str, stage: Stage, model: ModelConfig, world: int) -> StagePlan:
    counts = model.parameter_counts()
    mixture, parallel = stage.mixture, stage.parallel
    dp, rows, of = world // parallel.split, mixture.rows_per_batch, mixture.global_batch
    return StagePlan(
        name=name,
        parameters=counts["total"],
        trained_parameters=model.trained_parameters(stage.train),
        steps=stage.steps,
        batch=f"{of.size} {of.unit}",
        packs_per_batch=rows,
        sequence_length=mixture.sequence_length,
        tokens=rows and stage.steps * rows * mixture.sequence_length,
        tp=parallel.tp,
        pp=parallel.pp,
        dp=dp,
        micro_batches=rows and -(-rows // dp),
        precision=stage.precision,
    )
