"""A trained stage's evaluation as files of its run folder: predictions/STAGE/SUITE.jsonl and gate/NAME.json.

What the training worker calls when a stage is trained, and `megavlm eval` afterwards. Loads torch only to predict.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megavlm.platform.config import Recipe
from megavlm.platform.errors import InputError
from megavlm.platform.runs import RunFolder
from megavlm.platform.storage import write_atomic

from ..checkpoints.listing import COMPLETE
from ..config import Gate
from ..data.build import StageData
from ..data.sets import open_set, set_folder
from . import SUITES
from .asking import ask
from .benchmarks.protocols import find_protocol
from .benchmarks.table import find_benchmark, is_benchmark
from .found import predictions_folder
from .gate import GateResult, gate_of
from .predictions import Prediction, read_about, read_predictions, write_predictions

if TYPE_CHECKING:
    from ..model import VisionLanguageModel


@dataclasses.dataclass(frozen=True)
class How:
    """How benchmarks are asked: the protocol's name; the first `limit` items of each, or all."""

    protocol: str = "nvlm"
    limit: int | None = None


PLAINLY = How()
PLAIN, BLIND = "plain", "blind"  # how a suite is shown: as it is, or every item with another item's image


def predictions_path(run: RunFolder, stage: str, suite: str, way: str = PLAIN, checkpoint: Path | None = None) -> Path:
    """Where the answers of a stage to a suite stand; those of the blind control beside them.

    Those of a `checkpoint` that is not the stage's newest stand in a folder of its name.
    """
    name = f"{suite}.jsonl" if way == PLAIN else f"{suite}.{way}.jsonl"
    return run.path("predictions", stage, *([checkpoint.name] if checkpoint else []), name)


def usable(path: Path, checkpoint: Path | None, how: How) -> bool:
    """Whether predictions are there, not older than the checkpoint whose they should be, and asked as they should be.

    Ten items of a benchmark, or another protocol's answers, must not be taken for what a gate asks.
    """
    if not path.exists():
        return False
    about = read_about(path)
    if is_benchmark(about.suite) and (about.protocol, about.limit) != (how.protocol, how.limit):
        return False
    return checkpoint is None or (checkpoint / COMPLETE).stat().st_mtime <= path.stat().st_mtime


def gate_path(run: RunFolder, name: str, checkpoint: Path | None = None) -> Path:
    """Where the verdict of a gate stage stands; of `megavlm eval`: under the stage judged, or its `checkpoint`."""
    return run.path("gate", *([name, f"{checkpoint.name}.json"] if checkpoint else [f"{name}.json"]))


def evaluate_stage(
    model: VisionLanguageModel,
    run: RunFolder,
    recipe: Recipe,
    stage: str,
    suites: dict[str, str],
    way: str = PLAIN,
    alive: Callable[[], object] = lambda: None,
    checkpoint: Path | None = None,
    how: How = PLAINLY,
) -> dict[str, list[Prediction]]:
    """Judge `model` on `suites` (suite -> set name) shown in one `way`, and write the predictions; every rank calls it.

    Returns suite -> predictions, of held-out sets on every rank, of benchmarks on rank 0. Rank 0 writes. `alive` is
    called as the work goes on. `how` says in which protocol benchmarks are asked, and how much of them.
    """
    import torch.distributed as dist

    asked = {suite: suites[suite] for suite in suites if is_benchmark(suite)}
    suites = {suite: name for suite, name in suites.items() if suite not in asked}
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
    if asked:
        found |= _ask_benchmarks(model, run, spec, stage, asked, alive, checkpoint, how)
    return found


def _ask_benchmarks(
    model: VisionLanguageModel,
    run: RunFolder,
    spec: StageData,
    stage: str,
    asked: dict[str, str],
    alive: Callable[[], object],
    checkpoint: Path | None,
    how: How,
) -> dict[str, list[Prediction]]:
    """Rank 0 asks, the others compute with it. Each file is written as soon as its benchmark is through."""
    from .engines.megatron import MegatronEngine, drive

    protocol = find_protocol(how.protocol)
    if protocol.max_tiles and hasattr(spec.model.tiling, "max_tiles"):
        tiling = {"tiling": {"max_tiles": protocol.max_tiles}}
        spec = dataclasses.replace(spec, model=spec.model.changed(tiling, where=f"protocol {protocol.name}"))

    def work(engine: MegatronEngine) -> dict[str, list[Prediction]]:
        found = {}
        for suite, name in asked.items():
            data = Path(set_folder(spec.data, name))
            found[suite], about = ask(engine, find_benchmark(suite), data, protocol, how.limit, alive)
            write_predictions(predictions_path(run, stage, suite, checkpoint=checkpoint), found[suite], about)
        return found

    return drive(MegatronEngine(model, spec), work) or {}


def judge_gate(
    run: RunFolder, stage: str, gate: Gate, checkpoint: Path | None = None, name: str | None = None
) -> GateResult:
    """Compare the stage's predictions with the baseline's, write the result, and return it. One process calls it.

    `checkpoint` as in predictions_path. `name`: of the gate stage, where one judges.
    Raises InputError when predictions are missing or not about the same items.
    """
    baseline = predictions_folder(gate.baseline, run)
    sides = {}
    for suite in gate.suites:
        before, after = baseline / f"{suite}.jsonl", predictions_path(run, stage, suite, checkpoint=checkpoint)
        if differs := read_about(before).differs(read_about(after)):
            what = f"suite '{suite}' was asked differently: {differs}"
            raise InputError(what, where=f"{before} and {after}", fix="evaluate both again with --fresh")
        sides[suite] = (read_predictions(before), read_predictions(after))
    result = gate_of(sides, max_drop=gate.max_drop, max_drop_each=gate.max_drop_each, confidence=gate.confidence)
    told: dict[str, Any] = {"stage": stage, "suite": ", ".join(gate.suites), "baseline": gate.baseline}
    told |= result.to_json()
    path = gate_path(run, name or stage, checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(told, indent=2).encode())
    return result
