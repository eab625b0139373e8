"""The recipe of a pilot: the full one on some shards, the options that depend on size scaled, and each one named."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from megavlm.platform.config.tree import Tree

from ..config import CurationConfig

IN_PROCESS = "in_process"


@dataclasses.dataclass(frozen=True)
class Scaled:
    """`tree`: the pilot's; `changes`: dotted key -> {"full": ..., "pilot": ...}; `lacking`: stage -> what it lacks."""

    tree: Tree
    changes: dict[str, dict[str, Any]]
    lacking: dict[str, str]


def lacking(config: CurationConfig) -> dict[str, str]:
    """The stages that cannot run on this machine, each with what it lacks."""
    found = {stage.name: stage.lacks() for stage in config.stages}
    return {name: lack for name, lack in found.items() if lack}


def scale(tree: Tree, config: CurationConfig, names: Sequence[str], share: float, lacks: Mapping[str, str]) -> Scaled:
    """For shards `names`, which hold `share` of the source. Raises ConfigError where no recipe is left."""
    out, changes = copy.deepcopy(tree), dict[str, dict[str, Any]]()
    curation = out["curation"]
    for stage in config.stages:
        key = f"curation.stages.{stage.name}"
        if stage.name not in lacks:
            for option, value in stage.piloted(share).items():
                _set(curation["stages"][stage.name], option, value, f"{key}.{option}", changes)
        elif options := stage.stand_in():
            for option, value in options.items():
                _set(curation["stages"][stage.name], option, value, f"{key}.{option}", changes)
        else:
            del curation["stages"][stage.name]
            changes[key] = {"full": "run", "pilot": "left out"}
    each = tasks_per_command(config, len(names))
    _set(curation["executor"], "tasks_per_command", each, "curation.executor.tasks_per_command", changes)
    curation["only"] = list(names)
    curation |= CurationConfig.parse(curation, where="curation").model_dump(mode="json")
    return Scaled(out, changes, dict(lacks))


def workers(config: CurationConfig) -> int:
    """How many tasks the recipe's executor runs side by side."""
    return 1 if config.executor.name == IN_PROCESS else max(1, config.executor.workers)


def tasks_per_command(config: CurationConfig, shards: int) -> int:
    """Fewer than the recipe's where workers would be idle: side by side, they are slower than alone."""
    each, side = config.executor.tasks_per_command, workers(config)
    return each if side == 1 else min(each, -(-shards // side))


def _set(options: Any, key: str, value: Any, name: str, changes: dict[str, dict[str, Any]]) -> None:
    *path, last = key.split(".")
    for part in path:
        options = options[int(part) if part.isdigit() else part]
    if options[last] != value:
        changes[name] = {"full": options[last], "pilot": value}
        options[last] = value
