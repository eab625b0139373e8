"""A run's predictions: those that are there are used, all others made by ranks started once. Loads no torch."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from megavlm.platform.config import Recipe
from megavlm.platform.errors import ConfigError
from megavlm.platform.runs import RunFolder

from ..checkpoints.listing import find_checkpoint, latest
from ..data.build import StageData
from ..data.sets import open_set, set_folder
from ..torchrun import run_on_ranks
from .asking import require_all
from .benchmarks.table import find_benchmark, is_benchmark
from .stage import BLIND, How, predictions_path, usable
from .suites import set_of_suite

WORKER = "megavlm.megatron_mm.evaluation.worker"
DATA = "benchmarks"  # the set that --data stands for


def data_override(data: Path | None) -> list[str]:
    """What --data means to a recipe."""
    return [f"data.sets.{DATA}={json.dumps(str(data.absolute()))}"] if data else []


def ensure_predictions(
    run: RunFolder,
    recipe: Recipe,
    stage: str,
    args: argparse.Namespace,
    suites: Sequence[str],
    ways: Sequence[str],
    checkpoint: Path | None = None,
) -> None:
    """Use the predictions that are there, saying so, and start the ranks once for all others.

    Predictions older than the stage's newest checkpoint, or than `checkpoint`, are of other weights, and made anew, as
    are those that were asked otherwise.
    """
    asked = [(suite, way) for suite in suites for way in ways]
    missing = []
    for suite, way in asked:
        path = predictions_path(run, stage, suite, way, checkpoint)
        if args.fresh or not usable(path, checkpoint or latest(run, stage), How(args.protocol, args.limit)):
            missing.append((suite, way))
        else:
            print(f"using {path} (--fresh evaluates anew)", file=sys.stderr)
    if not missing:
        return
    sets = {suite: _set_of(suite, recipe, stage, args) for suite, _ in missing}
    _check_sets(StageData.of(recipe, stage), sets, ways)
    words = [str(run.root), "--stage", stage, "--ways", *dict.fromkeys(way for _, way in missing)]
    words += ["--suites", *(f"{suite}={name}" for suite, name in sets.items()), "--protocol", args.protocol]
    words += ["--limit", str(args.limit)] if args.limit else []
    words += ["--data", str(args.data)] if args.data else []
    if checkpoint:
        words += ["--checkpoint", str(checkpoint)]
    else:
        find_checkpoint(run, stage)
    run_on_ranks(WORKER, words, recipe.section("stages")[stage].parallel.split)


def _set_of(suite: str, recipe: Recipe, stage: str, args: argparse.Namespace) -> str:
    if is_benchmark(suite) and args.data:
        return DATA
    return args.set or set_of_suite(recipe.section("stages"), stage, suite)


def _check_sets(spec: StageData, sets: dict[str, str], ways: Sequence[str]) -> None:
    """Raises for what is not there, before any rank is started, and for a benchmark asked blind."""
    asked = [suite for suite in sets if is_benchmark(suite)]
    if asked and BLIND in ways:
        raise ConfigError(f"benchmark '{asked[0]}' has no blind control", where="--blind", fix="leave --blind out")
    for suite, name in sets.items():
        if suite in asked:
            require_all([find_benchmark(suite)], Path(set_folder(spec.data, name)))
        else:
            open_set(spec.data, name)
