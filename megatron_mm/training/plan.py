"""What a training run will be, and whether it can be: arithmetic on the recipe alone. Loads no torch."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megavlm.platform.config import Recipe
from megavlm.platform.demo.places import MARK
from megavlm.platform.errors import ConfigError
from megavlm.platform.storage import exists

from ..backend.guards import check_stage
from ..config import ModelConfig, Stage, Stages
from ..data.build import StageData
from ..data.sets import set_folder, sets_of
from .stages import chosen


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """One stage in figures. tokens counts padded positions over all steps."""

    name: str
    parameters: int
    trained_parameters: int
    steps: int
    packs_per_batch: int
    sequence_length: int
    tokens: int
    tp: int
    pp: int
    dp: int
    micro_batches: int  # packs that one data-parallel rank works through in a step
    precision: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """A checked run. `notes` says what will be made or is worth knowing."""

    recipe: str
    world: int
    stages: list[StagePlan]
    notes: list[str]

    def record(self) -> dict[str, Any]:
        """Plain data under stable keys."""
        return dataclasses.asdict(self)


def make_plan(recipe: Recipe, stage: str | None = None, nproc: int | None = None) -> Plan:
    """Check all that can be known without torch; raises ConfigError or InputError at the first thing that cannot be."""
    stages: Stages = recipe.section("stages")
    names = chosen(stages, stage)
    if nproc is not None and nproc < 1:
        raise ConfigError(f"{nproc} processes cannot train", where="--nproc", fix="at least 1")
    world = nproc or default_world([stages[name] for name in names])
    plans, notes = [], []
    for name in names:
        spec = StageData.of(recipe, name)
        check_sizes(name, spec.stage, spec.model, world)
        check_vocabulary(spec)
        check_gate(name, stages)
        notes += [note for note in check_sets(spec) if note not in notes]
        plans.append(_stage_plan(name, spec.stage, spec.model, world))
    return Plan(recipe.name, world, plans, notes)


def default_world(stages: Sequence[Stage]) -> int:
    """The fewest processes that every stage's layout divides; with GPUs, as many of them as that number divides."""
    smallest = math.lcm(*(stage.parallel.split for stage in stages))
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
    dp = world // parallel.split
    return StagePlan(
        name=name,
        parameters=counts["total"],
        trained_parameters=sum(counts[axis] for axis in stage.train),
        steps=stage.steps,
        packs_per_batch=mixture.packs_per_batch,
        sequence_length=mixture.sequence_length,
        tokens=stage.steps * mixture.packs_per_batch * mixture.sequence_length,
        tp=parallel.tp,
        pp=parallel.pp,
        dp=dp,
        micro_batches=mixture.packs_per_batch // dp,
        precision=stage.precision,
    )


def check_sizes(name: str, stage: Stage, model: ModelConfig, world: int) -> None:
    """What the backend asks of a stage, and all that must divide something else; raises ConfigError with a fix."""
    where = f"stages.{name}"
    parallel, mixture = stage.parallel, stage.mixture
    ranks = parallel.split
    if world % ranks:
        raise ConfigError(
            f"{world} processes do not divide by tp {parallel.tp} x pp {parallel.pp} = {ranks}",
            where=f"{where}.parallel",
            fix=f"use --nproc {max(world // ranks, 1) * ranks}, or another layout",
        )
    check_stage(model, stage, where)
    for what, size, by, divisor in _divisions(stage, world // ranks):
        if size % divisor:
            raise ConfigError(
                f"{what} {size} does not divide by {by} {divisor}", where=where, fix=_nearest_divisor(size, by, divisor)
            )
    longest = getattr(model.decoder, "max_positions", mixture.sequence_length)
    if mixture.sequence_length > longest:
        raise ConfigError(
            f"sequence_length {mixture.sequence_length} is more than the decoder's max_positions {longest}",
            where=f"{where}.mixture.sequence_length",
            fix=f"set {where}.mixture.sequence_length={longest}",
        )


def _divisions(stage: Stage, dp: int) -> Iterator[tuple[str, int, str, int]]:
    """(what, size, by what, divisor) of everything else that a layout cuts into equal parts."""
    yield "mixture.packs_per_batch", stage.mixture.packs_per_batch, "the data-parallel size", dp
    if stage.parallel.sequence_parallel:
        yield "mixture.sequence_length", stage.mixture.sequence_length, "parallel.tp", stage.parallel.tp


def _nearest_divisor(size: int, by: str, divisor: int) -> str:
    smaller = max(k for k in range(1, divisor) if size % k == 0)
    return f"{by} {smaller} would do" if "." not in by else f"set {by}={smaller}"


def check_vocabulary(spec: StageData) -> None:
    """Raises ConfigError when the tokenizer has ids that the decoder has no row for."""
    tokens, rows = spec.tokenizer().vocab_size, getattr(spec.model.decoder, "vocab", None)
    if rows is not None and tokens > rows:
        raise ConfigError(
            f"the tokenizer '{spec.data.tokenizer}' has {tokens} tokens and the decoder {rows} rows for them",
            where="model.decoder.vocab",
            fix=f"set model.decoder.vocab={tokens} or more",
        )


def check_gate(name: str, stages: Stages) -> None:
    """Raises ConfigError when a gate compares predictions that are not made, or a blind control repeats none."""
    gate = stages[name].gate
    for suite in stages[name].blind:
        if suite not in stages[name].evaluate:
            fix = f"set stages.{name}.evaluate.{suite}=SET"
            raise ConfigError(f"suite '{suite}' is blind and not evaluated", where=f"stages.{name}.blind", fix=fix)
    for side in [name, gate.baseline] if gate else []:
        if gate and gate.suite not in stages[side].evaluate:
            raise ConfigError(
                f"the gate of stage '{name}' compares suite '{gate.suite}', which stage '{side}' does not evaluate",
                where=f"stages.{side}.evaluate",
                fix=f"set stages.{side}.evaluate.{gate.suite}=SET",
            )


def check_sets(spec: StageData) -> list[str]:
    """Raises ConfigError for a set that is not there; returns notes on those that will be made."""
    notes = []
    for name in [*sets_of(spec.stage), *spec.stage.evaluate.values()]:
        folder = set_folder(spec.data, name)
        if exists(folder):
            continue
        if MARK not in spec.data.sets[name]:
            raise ConfigError(
                f"data set '{name}' is not at {folder}", where=f"data.sets.{name}", fix=f"set data.sets.{name}=FOLDER"
            )
        notes.append(f"data set '{name}' is the demo's: it will be made at {folder}")
    return notes
