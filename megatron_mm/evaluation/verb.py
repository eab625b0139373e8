"""`megavlm eval`: a stage's accuracy on a suite beside chance and the blind control, and the paired gate. No torch."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megavlm.platform.cli import parser
from megavlm.platform.config import Recipe, load_recipe
from megavlm.platform.errors import ConfigError
from megavlm.platform.runs import RunFolder, find_run

from ..checkpoints.listing import COMPLETE, Source, find_checkpoint, latest, names_checkpoint, resolve
from ..config import Gate, Stages
from ..data.build import StageData
from ..data.sets import open_set
from ..torchrun import run_on_ranks
from .chance import chance_accuracy
from .gate import GateResult
from .predictions import Prediction, accuracy, accuracy_by_kind, read_predictions
from .stage import BLIND, PLAIN, check_suite, judge_gate, predictions_path, set_of_suite

WORKER = "megavlm.megatron_mm.evaluation.worker"

EPILOG = """\
examples:
  megavlm eval nvlm-d-mini --stage sft --suite vqa --blind
  megavlm eval runs/nvlm-d-mini/checkpoints/sft/step-000080 --suite vqa
  megavlm eval nvlm-d-mini --stage sft --suite text --baseline language --max-drop 0.02
exit codes with --baseline: 0 the drop is within --max-drop, 3 it is beyond, 5 more items are needed to tell
"""


def main(argv: Sequence[str]) -> int:
    """Evaluate one stage of a run, or read what was evaluated before; returns the gate's exit code."""
    args = _arguments(argv)
    run, checkpoint = _source(args)
    recipe = load_recipe(str(run.path("config.yaml")))
    stages: Stages = recipe.section("stages")
    check_suite(args.suite)
    gate = gate_asked_for(args, stages)
    if gate:
        ensure_predictions(run, recipe, gate.baseline, args, [PLAIN])
    ensure_predictions(run, recipe, args.stage, args, [PLAIN, BLIND] if args.blind else [PLAIN], checkpoint)
    result = judge_gate(run, args.stage, gate, checkpoint) if gate else None
    told = outcome(run, args.stage, args.suite, blind=args.blind, gate=result, checkpoint=checkpoint)
    print(json.dumps(told, indent=2) if args.json else readable(told, result))
    return result.exit_code if result else 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    p = parser("eval", epilog=EPILOG)
    p.add_argument("run", metavar="RUN|CKPT", help="a run (folder or name), or a checkpoint's folder in one")
    p.add_argument("--stage", help="the trained stage to judge; a checkpoint's folder says it by itself")
    p.add_argument("--suite", required=True, help="text or vqa")
    p.add_argument("--set", help="held-out set of the recipe (default: the one the stages name for this suite)")
    p.add_argument("--blind", action="store_true", help="also the blind control: every item sees another item's image")
    p.add_argument("--baseline", metavar="STAGE", help="gate: compare with this stage, item by item")
    p.add_argument("--max-drop", type=float, help="gate: largest tolerated loss of accuracy, as a fraction")
    p.add_argument("--fresh", action="store_true", help="evaluate anew what was evaluated before")
    return p.parse_args(argv)


def _source(args: argparse.Namespace) -> tuple[RunFolder, Path | None]:
    """The run, and the checkpoint where one was named that is not its stage's newest; completes args.stage.

    Predictions that stand in the run folder need no checkpoint: so that is not looked for here.
    """
    if names_checkpoint(args.run):
        source = resolve(args.run, args.stage)
        args.stage = source.stage
        return source.run, None if source.checkpoint == _newest(source) else source.checkpoint
    if args.stage is None:
        raise ConfigError("a run has several stages", where="--stage", fix="name the stage to judge with --stage")
    return find_run(args.run), None


def _newest(source: Source) -> Path | None:
    newest = latest(source.run, source.stage)
    return newest.resolve() if newest else None


def gate_asked_for(args: argparse.Namespace, stages: Stages) -> Gate | None:
    """The gate that --baseline and --max-drop describe; the recipe's gate of this stage gives what is left out."""
    own = stages[args.stage].gate
    if args.baseline is None:
        if args.max_drop is not None:
            raise ConfigError("--max-drop needs --baseline", fix="name the stage to compare with")
        return None
    stages[args.baseline]  # raises ConfigError for an unknown stage
    max_drop = args.max_drop if args.max_drop is not None else own.max_drop if own else None
    if max_drop is None:
        raise ConfigError("--baseline needs --max-drop", where=f"stages.{args.stage}.gate", fix="--max-drop 0.02")
    return Gate(suite=args.suite, baseline=args.baseline, max_drop=max_drop, confidence=own.confidence if own else 0.95)


def ensure_predictions(
    run: RunFolder,
    recipe: Recipe,
    stage: str,
    args: argparse.Namespace,
    ways: Sequence[str],
    checkpoint: Path | None = None,
) -> None:
    """Use the predictions that are there, saying so, and start the ranks once for all others.

    Predictions older than the stage's newest checkpoint, or than `checkpoint`, are of other weights, and made anew.
    """
    paths = {way: predictions_path(run, stage, args.suite, way, checkpoint) for way in ways}
    missing = [way for way in ways if args.fresh or not _usable(paths[way], checkpoint or latest(run, stage))]
    for way in [way for way in ways if way not in missing]:
        print(f"using {paths[way]} (--fresh evaluates anew)", file=sys.stderr)
    if not missing:
        return
    spec = StageData.of(recipe, stage)
    name = args.set or set_of_suite(recipe.section("stages"), stage, args.suite)
    open_set(spec.data, name)
    words = [str(run.root), "--stage", stage, "--suite", args.suite, "--set", name, "--ways", *missing]
    if checkpoint:
        words += ["--checkpoint", str(checkpoint)]
    else:
        find_checkpoint(run, stage)
    run_on_ranks(WORKER, words, spec.stage.parallel.split)


def _usable(path: Path, checkpoint: Path | None) -> bool:
    if checkpoint is None or not path.exists():
        return path.exists()
    return (checkpoint / COMPLETE).stat().st_mtime <= path.stat().st_mtime


def outcome(
    run: RunFolder,
    stage: str,
    suite: str,
    *,
    blind: bool = False,
    gate: GateResult | None = None,
    checkpoint: Path | None = None,
) -> dict[str, Any]:
    """What the files say of a stage and suite, under stable keys; accuracies are fractions."""
    path = predictions_path(run, stage, suite, checkpoint=checkpoint)
    items = read_predictions(path)
    told: dict[str, Any] = {
        "run": str(run.root),
        "stage": stage,
        "suite": suite,
        "items": len(items),
        "accuracy": accuracy(items),
        "accuracy_by_kind": accuracy_by_kind(items),
        "chance": chance_accuracy((item.kind, item.expected) for item in items),
        "not_shown": _not_shown(items),
        "predictions": str(path),
    }
    if blind:
        told["accuracy_blind"] = accuracy(read_predictions(predictions_path(run, stage, suite, BLIND, checkpoint)))
    if checkpoint:
        told["checkpoint"] = str(checkpoint)
    if gate:
        told["gate"] = gate.to_json()
    return told


def _not_shown(items: Sequence[Prediction]) -> dict[str, str]:
    return {item.id: item.problem for item in items if item.problem}


def readable(told: dict[str, Any], gate: GateResult | None) -> str:
    """The outcome for people."""
    lines = [f"{told['stage']} on {told['suite']}: {told['accuracy']:.1%} of {told['items']} items exactly right"]
    lines += [f"  {kind or '(no kind)':<20}{share:>7.1%}" for kind, share in told["accuracy_by_kind"].items()]
    lines.append(f"  {'chance':<20}{told['chance']:>7.1%}  the best constant answer of each kind")
    if "accuracy_blind" in told:
        lines.append(f"  {'blind':<20}{told['accuracy_blind']:>7.1%}  every item shown another item's image")
    if told["not_shown"]:
        lines.append(f"  {len(told['not_shown'])} item(s) could not be shown and count as wrong: {told['predictions']}")
    if gate:
        lines.append(f"gate {gate.sentence()}")
    return "\n".join(lines)
