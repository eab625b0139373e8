"""What a gate stage needs before it can judge: the answers of both sides, in a layout of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from megavlm.platform.config import Recipe
from megavlm.platform.runs import RunFolder

from ..checkpoints.listing import latest
from ..config import Stages
from ..inference.load import load_stage
from .stage import How, evaluate_stage, predictions_path, usable
from .suites import gate_sets

T = TypeVar("T")


def answer_for_gate(
    run: RunFolder, recipe: Recipe, name: str, as_first_says: Callable[[T], T], alive: Callable[[], object]
) -> None:
    """Make what predictions of the baseline and of the judged stage are not there; every rank calls it.

    `as_first_says` is how ranks agree on what a folder holds. A baseline of another run must have its answers.
    """
    stages: Stages = recipe.section("stages")
    gate = stages.gates[name]
    for stage in (gate.gate.baseline, gate.judges):
        if stage not in stages.root:
            continue
        newest = latest(run, stage)
        sets = gate_sets(stages, name).items()
        how = How(gate.protocol)
        lacking = {suite: of for suite, of in sets if not usable(predictions_path(run, stage, suite), newest, how)}
        lacking = as_first_says(lacking)  # type: ignore[arg-type,assignment]
        if lacking:
            alive()
            model = load_stage(run, recipe, stage, stages.layout(name))
            evaluate_stage(model, run, recipe, stage, lacking, alive=alive, how=how)
            del model  # before the next one is built
