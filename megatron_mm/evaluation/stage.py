"""A trained stage's evaluation as files of its run folder: predictions/STAGE/SUITE.jsonl and gate/STAGE.json.

What the training worker calls when a stage is trained, and `megavlm eval` afterwards. Loads torch only to predict.
"""

from __future__ import annotations

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


def predictions_path(run: RunFolder, stage: str, suite: str, way: str = PLAIN) -> Path:
    """Where the answers of a stage to a suite stand; those of the blind control beside them."""
    return run.path("predictions", stage, f"{suite}.jsonl" if way == PLAIN else f"{suite}.{way}.jsonl")


def gate_path(run: RunFolder, stage: str) -> Path:
    """Where a stage's gate stands."""
    return run.path("gate", f"{stage}.json")


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
) -> dict[str, list[Prediction]]:
    """Judge `model` on `suites` (suite -> set name) shown in one `way`, and write the predictions; every rank calls it.

    Returns suite -> predictions on every rank. Rank 0 writes. `alive` is called as the work goes on.
    """
    import torch.distributed as dist

    spec = StageData.of(recipe, stage)
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
            write_predictions(predictions_path(run, stage, suite, way), found[suite])
    return found


def judge_gate(run: RunFolder, stage: str, gate: Gate) -> GateResult:
    """Compare the stage's predictions with the baseline's, write the result, and return it. One process calls it.

    Raises InputError when predictions are missing or not about the same items.
    """
    before, after = (read_predictions(predictions_path(run, name, gate.suite)) for name in (gate.baseline, stage))
    result = paired_gate(before, after, max_drop=gate.max_drop, confidence=gate.confidence)
    told: dict[str, Any] = {"stage": stage, "suite": gate.suite, "baseline": gate.baseline} | result.to_json()
    path = gate_path(run, stage)
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, json.dumps(told, indent=2).encode())
    return result
