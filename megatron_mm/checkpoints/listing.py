"""Where checkpoints stand, and which one a run, or a path into one, means. Loads no torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

from megavlm.platform.config import Recipe, load_recipe
from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.runs import RunFolder, find_run

from ..config import Checkpoint, Stages

COMPLETE = "COMPLETE"  # the marker renamed into a checkpoint's folder when all of it is on disk
PASSED = "PASSED"  # in it where every watcher that may end the stage looked at it and passed it


class Source(NamedTuple):
    """Trained weights: the run they are from, its recipe, the stage, and the checkpoint's folder."""

    run: RunFolder
    recipe: Recipe
    stage: str
    checkpoint: Path


def resolve(run_or_checkpoint: str, stage: str | None = None) -> Source:
    """RUN (its folder or name), or RUN/checkpoints/STAGE/step-N. Without `stage`, a run means its last trained stage.

    Raises InputError when there is no complete checkpoint, ConfigError for a stage the run does not have, or whose
    checkpoint that is not.
    """
    if names_checkpoint(run_or_checkpoint):
        return _of_checkpoint(Path(run_or_checkpoint).resolve(), stage)
    run = find_run(run_or_checkpoint)
    recipe = load_recipe(str(run.path("config.yaml")))
    stages: Stages = recipe.section("stages")
    if stage is None:
        trained = [name for name in stages.root if latest(run, name)]
        stage = trained[-1] if trained else list(stages.root)[-1]
    stages[stage]  # raises ConfigError for an unknown one
    return Source(run, recipe, stage, find_checkpoint(run, stage))


def imported_parts(checkpoint: Path) -> list[str] | None:
    """What of a model an imported checkpoint holds; None for one that a training wrote."""
    return json.loads((checkpoint / COMPLETE).read_bytes()).get("parts")


def lacking_of(checkpoint: Path) -> list[str]:
    """Of what a complete checkpoint holds: the modules and parameters that nobody published."""
    return json.loads((checkpoint / COMPLETE).read_bytes()).get("lacking", [])


def names_checkpoint(text: str) -> bool:
    """Whether that is RUN/checkpoints/STAGE/step-N, there or not, rather than a run."""
    return Path(text).name.startswith("step-")


def _of_checkpoint(folder: Path, wanted: str | None) -> Source:
    if not (folder / COMPLETE).exists():
        raise InputError(f"no complete checkpoint at {folder}", fix=f"give a folder that holds {COMPLETE}")
    above = (parent for parent in folder.parents if parent.name == "checkpoints")  # one set aside lies deeper
    home = next(above, folder.parents[1])
    run, stage = RunFolder.open(home.parent), folder.relative_to(home).parts[0]
    if wanted not in {None, stage}:
        what = f"that is a checkpoint of stage '{stage}', not of '{wanted}'"
        raise ConfigError(what, where=str(folder), fix=f"leave out --stage, or give --stage {stage}")
    return Source(run, load_recipe(str(run.path("config.yaml"))), stage, folder)


def checkpoint_path(run: RunFolder, stage: str, step: int) -> Path:
    """Where the checkpoint after `step` updates of a stage stands."""
    return run.path("checkpoints", stage, f"step-{step:06d}")


def complete_checkpoints(run: RunFolder, stage: str) -> list[Path]:
    """A stage's checkpoints that are whole, oldest first."""
    found = (path.parent for path in run.path("checkpoints", stage).glob(f"step-*/{COMPLETE}"))
    return sorted(found, key=step_of)


def latest(run: RunFolder, stage: str) -> Path | None:
    """The newest complete checkpoint of a stage, or None."""
    found = complete_checkpoints(run, stage)
    return found[-1] if found else None


def newest_passed(run: RunFolder, stage: str) -> Path | None:
    """The newest complete checkpoint that watchers passed, or None."""
    found = [folder for folder in complete_checkpoints(run, stage) if (folder / PASSED).exists()]
    return found[-1] if found else None


def find_checkpoint(run: RunFolder, stage: str) -> Path:
    """The newest complete checkpoint of a stage; raises InputError when there is none."""
    found = latest(run, stage)
    if found is None:
        raise InputError(
            f"stage '{stage}' has no complete checkpoint",
            where=str(run.path("checkpoints", stage)),
            fix=f"train it first: megavlm train RECIPE --stage {stage}",
        )
    return found


def prune(run: RunFolder, stage: str, options: Checkpoint, newest: Path) -> None:
    """Take away a stage's checkpoints, complete or not, except `newest` and those that `options` keep.

    The newest that watchers passed stays, to be come back to. The marker goes first: what is killed meanwhile leaves
    none that only looks complete.
    """
    whole = complete_checkpoints(run, stage)
    passed = [folder for folder in whole if (folder / PASSED).exists()]
    kept = {
        newest,
        *passed[-1:],
        *whole[-options.keep_last :],
        *(folder for folder in whole if _is_for_good(folder, options)),
    }
    for folder in run.path("checkpoints", stage).glob("step-*"):
        if folder not in kept:
            (folder / COMPLETE).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)


def _is_for_good(folder: Path, options: Checkpoint) -> bool:
    return options.keep_every is not None and step_of(folder) % options.keep_every == 0


def step_of(folder: Path) -> int:
    """The number of updates that a checkpoint has seen."""
    return int(folder.name.removeprefix("step-"))
