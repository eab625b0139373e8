"""What the files of an evaluation say, for programs and for people. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megavlm.platform.runs import RunFolder

from .benchmarks.table import find_benchmark, is_benchmark
from .benchmarks.totals import published_score
from .chance import chance_accuracy
from .gate import GateResult
from .predictions import Prediction, accuracy, accuracy_by_kind, read_about, read_predictions
from .stage import BLIND, predictions_path


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
    told = {"run": str(run.root), "stage": stage, **of_file(predictions_path(run, stage, suite, checkpoint=checkpoint))}
    if blind:
        told["accuracy_blind"] = accuracy(read_predictions(predictions_path(run, stage, suite, BLIND, checkpoint)))
    if checkpoint:
        told["checkpoint"] = str(checkpoint)
    if gate:
        told["gate"] = gate.to_json()
    return told


def of_file(path: Path) -> dict[str, Any]:
    """What one file of predictions says, under stable keys."""
    items, about = read_predictions(path), read_about(path)
    return {
        "suite": about.suite,
        "metric": about.metric,
        "protocol": about.protocol,
        "engine": about.engine,
        "items": len(items),
        "accuracy": accuracy(items),
        "published_scale": _published(about.suite, items),
        "accuracy_by_kind": accuracy_by_kind(items),
        "chance": chance_accuracy((item.kind, item.expected) for item in items),
        "not_shown": _not_shown(items),
        "predictions": str(path),
    }


def _published(suite: str, items: Sequence[Prediction]) -> float | None:
    """The score on the scale of the papers' tables, where it is a benchmark."""
    return published_score(find_benchmark(suite), items) if is_benchmark(suite) else None


def _not_shown(items: Sequence[Prediction]) -> dict[str, str]:
    return {item.id: item.problem for item in items if item.problem}


def readable(told: dict[str, Any], gate: GateResult | None = None) -> str:
    """The outcome for people."""
    who = told.get("stage", told["engine"])
    lines = [f"{who} on {told['suite']}: {told['accuracy']:.1%} of {told['items']} items ({told['metric']})"]
    if len(told["accuracy_by_kind"]) > 1 or not told["protocol"]:
        lines += [f"  {kind or '(no kind)':<20}{share:>7.1%}" for kind, share in told["accuracy_by_kind"].items()]
    if told["published_scale"] is not None:
        lines.append(
            f"  {'as papers give it':<20}{told['published_scale']:>7.1f}  asked by protocol {told['protocol']}"
        )
    if not told["protocol"]:
        lines.append(f"  {'chance':<20}{told['chance']:>7.1%}  the best constant answer of each kind")
    if "accuracy_blind" in told:
        lines.append(f"  {'blind':<20}{told['accuracy_blind']:>7.1%}  every item shown another item's image")
    if told["not_shown"]:
        lines.append(f"  {len(told['not_shown'])} item(s) could not be shown and count as wrong: {told['predictions']}")
    if gate:
        lines.append(f"gate {gate.sentence()}")
    return "\n".join(lines)
