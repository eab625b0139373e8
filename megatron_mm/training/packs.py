"""A stage's packs and data before it trains: made where missing, refused where they are another's. No torch."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from megavlm.platform.config import Recipe
from megavlm.platform.demo.places import VARIABLE, demo_data
from megavlm.platform.errors import MegaVLMError
from megavlm.platform.runs import RunFolder

from ..data.build import StageData, build_manifest
from ..data.manifest import Manifest, refuse_format_1
from ..data.sets import demo_data_missing, sets_of
from ..data.skips import Skips, read_skips
from .plan import Plan


def ensure_packs(
    run: RunFolder, spec: StageData, alive: Callable[[], object] = lambda: None, skips: Skips | None = None
) -> Manifest:
    """The stage's manifest: the one there, if it was made for this configuration, or a new one.

    Raises ConfigError for a manifest with another fingerprint. One that is only too short is packed anew: a longer plan
    begins with the shorter one. `skips`: those to come, where they are not the run's.
    """
    path = packs_path(run.root, spec.name)
    spec = _longer(spec, (read_skips(path.parent) if skips is None else skips).count)
    if not path.exists():
        return build_manifest(spec, path, alive)
    manifest = Manifest(path)
    manifest.check(spec.fingerprint(spec.open_sets()), steps=0)
    return manifest if manifest.batches >= spec.stage.steps else build_manifest(spec, path, alive)


def _longer(spec: StageData, batches: int) -> StageData:
    stage = spec.stage.model_copy(update={"steps": spec.stage.steps + batches})
    return dataclasses.replace(spec, stage=stage)


def packs_path(run: Path, stage: str) -> Path:
    """Where a run keeps a stage's manifest; raises InputError where it has one of an earlier format."""
    path = run / "stages" / stage / "packs"
    return path if path.exists() else refuse_format_1(path)


def check_manifests(recipe: Recipe, plan: Plan, out: Path) -> None:
    """Refuse manifests of another configuration before anything is started; raises ConfigError."""
    trained = recipe.section("stages").root
    for stage in (stage for stage in plan.stages if stage.name in trained):
        spec = StageData.of(recipe, stage.name)
        path = packs_path(out, stage.name)
        if path.exists() and not demo_data_missing(spec.data, sets_of(spec.stage)):
            Manifest(path).check(spec.fingerprint(spec.open_sets()), steps=0)


def make_demo_data(recipe: Recipe) -> None:
    """Run the demo's data step when a set of the recipe is the demo's and is not there."""
    data = recipe.section("data")
    if not demo_data_missing(data, data.sets):
        return
    folder = demo_data()
    print(f"demo data not found at {folder}: making it first", file=sys.stderr)
    command = [sys.executable, "-m", "megavlm.platform.cli", "demo", "--only", "data"]
    done = subprocess.run(command, stdout=sys.stderr, env=os.environ | {VARIABLE: str(folder)})
    if done.returncode or demo_data_missing(data, data.sets):
        raise MegaVLMError(
            f"making the demo's data failed with exit code {done.returncode}",
            where=str(folder),
            fix=f"{VARIABLE}={folder} megavlm demo --only data  does the same; its message stands above",
        )
