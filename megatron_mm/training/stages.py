"""Which stages of a run are done, which come next, and whose weights they start from. Loads no torch."""

from __future__ import annotations

import json
import time
from typing import Any

from megavlm.platform.errors import ConfigError
from megavlm.platform.runs import RunFolder
from megavlm.platform.storage import write_atomic

from ..config import Stage, Stages
from ..parts import AXES, axis_of


def frozen_axes(stage: Stage) -> list[str]:
    """The axes of which a stage trains nothing."""
    return [axis for axis in AXES if axis not in {axis_of(part) for part in stage.train}]


def is_finished(run: RunFolder, name: str) -> bool:
    """Whether a stage is trained, saved and evaluated; a gate: whether it has judged."""
    return run.path("stages", name, "finished").exists()


def mark_stage_finished(run: RunFolder, name: str, **fields: Any) -> None:
    """Called last of all, once everything of the stage is on disk."""
    body = json.dumps({"time": round(time.time(), 3), **fields})
    write_atomic(run.path("stages", name, "finished"), body.encode())


def chosen(stages: Stages, only: str | None = None) -> list[str]:
    """The stages a run is about: the one asked for, or all that are not optional. A gate is where what it judges is."""
    if only is not None:
        stages.any(only)  # raises ConfigError for an unknown name
        return [only]
    wanted = {name for name, stage in stages.items() if not stage.optional}
    return [name for name in stages.order if name in wanted and set(_judged(stages, name)) <= wanted]


def _judged(stages: Stages, name: str) -> list[str]:
    return [stages.gates[name].judges] if name in stages.gates else []


def unfinished(run: RunFolder, stages: Stages, only: str | None = None) -> list[str]:
    """The chosen stages still to do, in order; raises ConfigError when one starts from a stage that is not finished."""
    names = [name for name in chosen(stages, only) if not is_finished(run, name)]
    for name in names:
        for earlier in stages.any(name).after:
            if not is_finished(run, earlier) and earlier not in names:
                raise ConfigError(
                    f"stage '{name}' comes after '{earlier}', which is not finished",
                    where=str(run.root),
                    fix=f"run `megavlm train RECIPE --stage {earlier}` first, or leave --stage away",
                )
    return names
