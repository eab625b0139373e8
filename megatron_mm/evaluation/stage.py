"""A trained stage's evaluation as files of its run folder: predictions/STAGE/SUITE.jsonl and gate/STAGE.json.

What the training worker calls when a stage is trained, and `megavlm eval` afterwards. Loads torch only to predict.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megavlm.platform.config import Recipe
from megavlm.platform.errors import ConfigError
from megavlm.platform.runs import RunFolder
from megavlm.platform.storage import write_atomic

from ..config import Gate, Stages
from ..data.build import StageData
from ..data.sets import open_set
from . import SUITES
from .gate import GateResult, paired_gate
from .predictions import Prediction, read_predictions, write_predictions

if TYPE_CHECKING:
    from ..model import VisionLanguageModel

PLAIN, BLIND = "plain", "blind"  # how a suite is shown: as it is, or every item with another item's image


def predictions_path(run: RunFolder, stage: str, suite: str, way: str = PLAIN, checkpoint: Path | None = None) -> Path:
    """Where the answers of a stage to a suite stand; those of the blind control beside them.

    Those of a `checkpoint` that is not the stage's newest stand in a folder of its name.
    """
    name = f"{suite}.jsonl" if way == PLAIN else f"{suite}.{way}.jsonl"
    return run.path("predictions", stage, *([checkpoint.name] if checkpoint else []), name)


def gate_path(run: RunFolder, stage: str, checkpoint: Path | None = None) -> Path:
    """Where the gate of a stage, or of a `checkpoint` that is not its newest, stands."""
    return run.path("gate", *([stage, f"{checkpoint.name}.json"] if checkpoint else [f"{stage}.json"]))


def set_of_suite(stages: Stages, stage: str, suite: str) -> str:
    """The set a stage is evaluated on in a suite: its own, or that of another stage. Raises ConfigError for none."""
    check_suite(suite)
    for candidate in (stages[stage], *stages.root.values()):
        if suite in candidate.evaluate:
            return candidate.evaluate[suite]
    raise ConfigError(
        f"no stage of this run names a set for suite '{suite}'",
        where=f"stages.{stage}.evaluate",
        fix="give the set with --set NAME",
    )


def check_suite(suite: str) -> None:
    """Raise ConfigError with the nearest name for an unknown suite. Known ones are not loaded: they need torch."""
    if suite not in SUITES:
        SUITES.load(suite)


def evaluate_stage(
    model: VisionLanguageModel,
    run: RunFolder,
    recipe: Recipe,
    stage: str,
    suites: dict[str, str],
    way: str = PLAIN,
    alive: Callable[[], object] = lambda: None,
    checkpoint: Path | None = None,
) -> dict[str, list[Prediction]]:
    """Judge `model` on `suites` (suite -> set name) shown in one `way`, and write the predictions; every rank calls it.

    Returns suite -> predictions on every rank. Rank 0 writes. `alive` is called as the work goes on.
    """
    import torch.distributed as dist

    # A stage's own template is how it learns. All are asked in the recipe's, so that a gate compares like with like.
    spec = dataclasses.replace(StageData.of(recipe, stage), data=recipe.section("data"))
    tokenizer, found = spec.tokenizer(), {}
    for suite, name in suites.items():
        predict = SUITES.load(suite)
        found[suite] = predict(
            model,
            tokenizer,
            open_set(spec.data, name),
            spec.model,
            spec.data,
            sequence_length=spec.stage.mixture.sequence_length,
            shuffle_images=way == BLIND,
            alive=alive,
        )
        if dist.get_rank() == 0:
            write_predictions(predictions_path(run, stage, suite, way, checkpoint), found[suite])
    return found


def judge_gate(run: RunFolder, stage: str, gate: Gate, checkpoint: Path | None = None) -> GateResult:
    """Compare the stage's predictions with the baseline's, write the result, and return it. One process calls it.

    `checkpoint` as in predictions_path.

    Raises InputError when predictions are missing or not about the same items.
    """
    before = read_predictions(predictions_path(run, gate.baseline, gate.suite))
    after = read_predictions(predictions_path(run, stage, gate.suite, checkpoint=checkpoint))
    result = paired_gate(before, after, max_drop=gate.max_drop, confidence=gate.confidence)
    told: dict[str, Any] = {"stage": stage, "suite": gate.suite, "baseline": gate.baseline} | result.to_json()
    path = gate_path(run, stage, checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(told, indent=2).encode())
    return result
