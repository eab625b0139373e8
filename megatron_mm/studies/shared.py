"""Stages that several variants have in common are trained once: the later ones start from the first one's checkpoint.

A stage is common when everything that decides its outcome is equal, to the key: the stage with all it names, the model
as it is in that stage, tokenizer, template and the sets it draws from and is judged on, the seed, the layout (which
changes how floating-point numbers add up), and the same of every stage before it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megavlm.platform.config import Recipe, load_recipe
from megavlm.platform.runs import RunFolder
from megavlm.platform.storage import write_atomic

from ..checkpoints.listing import latest
from ..config import Stages
from ..data.build import StageData
from ..training.outcome import stage_steps
from ..training.stages import is_finished
from .runs import VariantRun

FROM = "from.json"  # in stages/NAME of a run that took the stage over: whose it is
LEFT = ("lock", "finished", FROM)


def stage_key(recipe: Recipe, name: str) -> str:
    """A hash of all that decides what a stage becomes."""
    stages: Stages = recipe.section("stages")
    spec = StageData.of(recipe, name)
    stage = spec.stage
    sets = sorted({*stage.mixture.shares, *stage.evaluate.values()})
    told: dict[str, Any] = {
        "name": name,
        "stage": stage.model_dump(mode="json", exclude={"optional"}),
        "model": spec.model.model_dump(mode="json"),
        "data": [spec.data.tokenizer, spec.data.template.model_dump(mode="json"), {s: spec.data.sets[s] for s in sets}],
        "seed": spec.seed,
        "before": [stage_key(recipe, earlier) for earlier in stage.after if earlier in stages.root],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


class Sharing:
    """Whose stages each run takes over: of all that have a stage in common, the first trains it."""

    def __init__(self, runs: Sequence[VariantRun]) -> None:
        self._owners: dict[str, VariantRun] = {}
        self._keys: dict[str, dict[str, str]] = {}
        for run in runs:
            trained = run.recipe.section("stages").root
            keys = {name: stage_key(run.recipe, name) for name in run.stages if name in trained}
            self._keys[run.label] = keys
            for key in keys.values():
                self._owners.setdefault(key, run)

    def sources(self, run: VariantRun) -> dict[str, VariantRun]:
        """Stage -> the run that trains it, for the stages that another one does."""
        owners = {name: self._owners[key] for name, key in self._keys[run.label].items()}
        return {name: owner for name, owner in owners.items() if owner.label != run.label}

    def waves(self, runs: Sequence[VariantRun]) -> Iterator[list[VariantRun]]:
        """The runs in groups: those of a group may go side by side, when the groups before it have ended."""
        level: dict[str, int] = {}
        for run in runs:  # an owner stands before those that take over from it
            level[run.label] = 1 + max((level.get(o.label, -1) for o in self.sources(run).values()), default=-1)
        for number in sorted(set(level.values())):
            yield [run for run in runs if level[run.label] == number]

    def take_over(self, run: VariantRun) -> list[str]:
        """Put finished stages of other runs into this run's folder, where it has not begun them; returns their names.

        In order, and none after a stage that is missing: a stage belongs to the ones before it.
        """
        taken = []
        for name, owner in self.sources(run).items():
            if is_finished(run.folder, name):
                continue
            if latest(run.folder, name) or not self._is_what_it_says(owner, name):
                break
            copy_stage(owner.folder, run.folder, name)
            taken.append(name)
        return taken

    def _is_what_it_says(self, owner: VariantRun, name: str) -> bool:
        """Whether the owner's folder holds that stage finished, and as this study has it: an older one may differ."""
        config = owner.folder.path("config.yaml")
        if not config.exists() or not is_finished(owner.folder, name):
            return False
        return stage_key(load_recipe(str(config)), name) == self._keys[owner.label][name]


def copy_stage(source: RunFolder, target: RunFolder, name: str) -> None:
    """A finished stage with its newest checkpoint, predictions and metrics. Files are hard links where possible.

    `finished` comes last: what was killed before that is copied again.
    """
    newest = latest(source, name)
    folders = [("stages", name), ("predictions", name), *([newest.relative_to(source.root).parts] if newest else [])]
    for parts in folders:
        if source.path(*parts).is_dir():
            _link_tree(source.path(*parts), target.path(*parts))
    there = {line["step"] for line in stage_steps(target, name)}
    for line in stage_steps(source, name):
        if line["step"] not in there:
            target.append_metrics(line)
    folder = target.path("stages", name)
    write_atomic(folder / FROM, json.dumps({"run": str(source.root.resolve())}).encode())
    write_atomic(folder / "finished", source.path("stages", name, "finished").read_bytes())


def _link_tree(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        inside = path.relative_to(source)
        if path.is_file() and inside.parts[0] not in LEFT:
            _link(path, target / inside)


def _link(source: Path, target: Path) -> None:
    """A second name for the file; a copy where the file system gives none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
