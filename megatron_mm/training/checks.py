"""What can be wrong with a stage before it starts, or with where it is to be written. Loads no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from megavlm.platform.config import Recipe
from megavlm.platform.demo.places import MARK
from megavlm.platform.errors import ConfigError, InputError, MegaVLMError
from megavlm.platform.storage import exists

from ..backend.deterministic import require_environment
from ..backend.guards import check_stage, require_precision
from ..checkpoints.listing import imported_parts, lacking_of, resolve
from ..config import DataConfig, ModelConfig, Parallel, Stage
from ..conversion.published import Published
from ..data.build import StageData
from ..data.sets import set_folder
from ..evaluation.asking import require_all
from ..evaluation.benchmarks.table import find_benchmark, is_benchmark
from ..evaluation.suites import check_suite


def check_world(name: str, parallel: Parallel, nodes: int, nproc: int) -> None:
    """Raises ConfigError when the processes cannot hold whole copies of the model."""
    world = nodes * nproc
    if world % parallel.split == 0:
        return
    machines = f" ({nodes} nodes x {nproc})" if nodes > 1 else ""
    each = parallel.split // math.gcd(parallel.split, nodes)
    raise ConfigError(
        f"{world} processes{machines} do not divide by tp {parallel.tp} x pp {parallel.pp} x cp {parallel.cp} = "
        f"{parallel.split}",
        where=f"stages.{name}.parallel",
        fix=f"use --nproc {max(nproc // each, 1) * each}, or another layout",
    )


def check_sizes(name: str, stage: Stage, model: ModelConfig, world: int, elsewhere: bool = False) -> None:
    """What the backend asks of a stage, and all that must divide something else; raises ConfigError with a fix."""
    check_stage(model, stage, f"stages.{name}", elsewhere)
    check_lengths(name, stage, model, world)
    if stage.deterministic and not elsewhere:
        require_environment(f"stages.{name}", os.environ)


def check_lengths(name: str, stage: Stage, model: ModelConfig, world: int) -> None:
    """That packs divide over the layout and the decoder knows their positions; raises ConfigError with a fix."""
    where, mixture = f"stages.{name}", stage.mixture
    _check_overlap(stage.parallel, world, where)
    for what, size, by, divisor in _divisions(stage):
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


def _check_overlap(parallel: Parallel, world: int, where: str) -> None:
    copies = world * parallel.cp // parallel.split
    if parallel.overlap and copies == 1 and parallel.vp == 1:
        raise ConfigError(
            f"overlap true, and {world} process(es) hold one copy of the weights: there is nothing to overlap",
            where=f"{where}.parallel.overlap",
            fix=f"leave it null, or use --nproc {2 * world}",
        )


def _divisions(stage: Stage) -> Iterator[tuple[str, int, str, int]]:
    """(what, size, by what, divisor) of everything else that a layout cuts into equal parts."""
    parallel, length = stage.parallel, stage.mixture.sequence_length
    if parallel.cp > 1:
        yield "mixture.sequence_length", length, "2 x parallel.cp", 2 * parallel.cp
    if parallel.sequence_parallel:
        yield "mixture.sequence_length", length // parallel.cp, "parallel.tp", parallel.tp


def _nearest_divisor(size: int, by: str, divisor: int) -> str:
    smaller = max(k for k in range(1, divisor) if size % k == 0)
    return f"set {by}={smaller}" if by.startswith("parallel.") else f"{by} = {smaller} would do"


def check_vocabulary(spec: StageData) -> None:
    """Raises ConfigError when the tokenizer has ids that the decoder has no row for."""
    tokens, rows = spec.tokenizer().vocab_size, getattr(spec.model.decoder, "vocab", None)
    if rows is not None and tokens > rows:
        raise ConfigError(
            f"the tokenizer '{spec.data.tokenizer}' has {tokens} tokens and the decoder {rows} rows for them",
            where="model.decoder.vocab",
            fix=f"set model.decoder.vocab={tokens} or more",
        )


def check_suites(name: str, stage: Stage) -> None:
    """Raises ConfigError for a suite that there is not, and when a blind control repeats none."""
    for suite in stage.evaluate:
        check_suite(suite)
    for suite in stage.blind:
        if suite not in stage.evaluate:
            fix = f"set stages.{name}.evaluate.{suite}=SET"
            raise ConfigError(f"suite '{suite}' is blind and not evaluated", where=f"stages.{name}.blind", fix=fix)


def check_start(name: str, stage: Stage) -> None:
    """Raises InputError when the weights that a stage starts from are not there."""
    if stage.start is None:
        return
    try:
        resolve(stage.start)
    except InputError as error:
        raise InputError(
            f"stage '{name}' starts from weights that are not there: {error.what}",
            where=f"stages.{name}.start",
            fix=f"make them: megavlm convert import PATH --recipe RECIPE --out {stage.start}",
        ) from None


def check_teacher(name: str, stage: Stage, model: ModelConfig) -> None:
    """Raises ConfigError where nobody says which weights an objective's teacher has, InputError for a folder without.

    A stage that comes after others has those of theirs, and one that starts from a checkpoint what that holds.
    """
    folder = teacher_folder(model)
    if folder is not None:
        Published(folder)
    told = any(getattr(objective, "teacher_weights", None) for objective in model.objectives)
    held = stage.start is not None and _holds_teacher(resolve(stage.start).checkpoint)
    if model.parameter_counts().get("teacher") and not (told or held or stage.after):
        raise ConfigError(
            f"stage '{name}' has a teacher, and nothing says which weights",
            where="model.objectives",
            fix="set its teacher_weights to a folder of Hugging Face's, or to `random`",
        )


def _holds_teacher(checkpoint: Path) -> bool:
    """As far as its marker tells: of a training's own, that is not known before it is read."""
    parts = imported_parts(checkpoint)
    drawn = any(name.startswith("objectives.teacher") for name in lacking_of(checkpoint))
    return (parts is None or "objectives" in parts) and not drawn


def teacher_folder(model: ModelConfig) -> Path | None:
    """Where the published weights of a teacher lie; None for one that is drawn, or comes with a checkpoint."""
    told = [getattr(objective, "teacher_weights", None) for objective in model.objectives]
    return next((Path(folder) for folder in told if folder not in (None, "random")), None)


def check_asked(data: DataConfig, sets: Mapping[str, str], elsewhere: bool) -> list[str]:
    """Raises for a held-out set that is not there, and for what a benchmark needs and has not; returns notes.

    `sets`: suite -> set. `elsewhere`: it will run on another machine, so that what benchmarks lack is a note.
    """
    notes = check_sets(data, (name for suite, name in sets.items() if not is_benchmark(suite)))
    for suite, name in sets.items():
        if not is_benchmark(suite):
            continue
        try:
            require_all([find_benchmark(suite)], Path(set_folder(data, name)))
        except MegaVLMError as error:
            if not elsewhere:
                raise
            notes.append(f"here, {error.what}; it has to be where this runs: {error.fix}")
    return notes


def check_sets(data: DataConfig, names: Iterable[str]) -> list[str]:
    """Raises ConfigError for a set that is not there; returns notes on those that will be made."""
    notes = []
    for name in names:
        folder = set_folder(data, name)
        if exists(folder):
            continue
        if MARK not in data.sets[name]:
            raise ConfigError(
                f"data set '{name}' is not at {folder}", where=f"data.sets.{name}", fix=f"set data.sets.{name}=FOLDER"
            )
        notes.append(f"data set '{name}' is the demo's: it will be made at {folder}")
    return notes


def missing_here(stage: Stage) -> list[str]:
    """Notes on what the stage needs where it will run, and this machine has not."""
    try:
        require_precision(stage.precision)
    except ConfigError as error:
        return [f"here, {error.what}; it has to be where this runs"]
    return []


def check_trackers(recipe: Recipe) -> None:
    """Raises MissingPackage when a tracker that the recipe names cannot run here."""
    for tracker in recipe.sections["run"].trackers if "run" in recipe.sections else []:
        tracker.check()


def check_writable(folder: Path) -> None:
    """Raises ConfigError unless `folder`, or the first folder above it that is there, can be written to."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "is no folder" if not there.is_dir() else "cannot be written to"
        raise ConfigError(f"{there} {why}", where=f"run folder {folder}", fix="give another one with --out")
