"""A study of a recipe that trains in seconds, and trainings that are written down instead of run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.evaluation.predictions import Prediction, write_predictions
from megavlm.megatron_mm.evaluation.stage import predictions_path
from megavlm.megatron_mm.studies.runs import VariantRun
from megavlm.megatron_mm.training.packs import ensure_packs
from megavlm.megatron_mm.training.stages import mark_stage_finished
from megavlm.platform.runs import RunFolder

SAMPLES = "{unit: samples, size: 6}"
ONE_PROCESS = [
    *(f"stages.{name}.parallel.tp=1" for name in ("language", "sft")),
    *(f"stages.{name}.mixture.packs_per_batch=null" for name in ("language", "sft")),
    *(f"stages.{name}.mixture.batch={SAMPLES}" for name in ("language", "sft")),
    "stages.language.steps=3",
    "stages.sft.steps=4",
    "stages.sft.blind=[]",
    "stages.gate=null",
]
FEW_TILES = "stages.sft.model={tiling: {max_tiles: 1}}"


@pytest.fixture
def study_tree(recipe: Path) -> dict[str, Any]:
    """A study of the tiny recipe as plain data: one tile at most, or two."""
    return {
        "question": "Do more tiles help?",
        "recipe": str(recipe),
        "overrides": list(ONE_PROCESS),
        "variants": [{"name": "one", "overrides": [FEW_TILES]}, {"name": "two"}],
        "scores": {"vqa": {"stage": "sft", "suite": "vqa"}, "loss": {"stage": "sft", "metric": "loss", "over": 2}},
        "published": [
            {"title": "Theirs, at 34B", "source": "a paper, table 1", "columns": ["DocVQA"], "rows": {"tiles": [80.2]}}
        ],
    }


@pytest.fixture
def write_study(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """`write_study(tree)`: the YAML file of a study called tiny."""

    def write(tree: dict[str, Any]) -> Path:
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(tree, sort_keys=False))
        return path

    return write


@pytest.fixture
def pretend() -> Callable[..., None]:
    """`pretend(run, right=[...], losses=[...])`: the files of a finished training, its packs being real."""

    def write(run: VariantRun, right: list[bool], losses: list[float]) -> None:
        folder = RunFolder.create(run.folder.root, run.recipe.tree, run.recipe.origins, ["train"])
        for name in run.trained:
            spec = StageData.of(run.recipe, name)
            ensure_packs(folder, spec)
            for step in range(1, spec.stage.steps + 1):
                line = {"stage": name, "step": step, "batch": step - 1, "seconds": 0.5, "attempt": 1}
                folder.append_metrics(line | {"loss": losses[(step - 1) % len(losses)]})
        items = [Prediction(f"v{k}", "all", yes, "red" if yes else "no", "red") for k, yes in enumerate(right)]
        write_predictions(predictions_path(folder, "sft", "vqa"), items)
        for name in run.stages:
            mark_stage_finished(folder, name)

    return write


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[[], Any]:
    """What the verb printed as JSON."""
    return lambda: json.loads(capsys.readouterr().out)
