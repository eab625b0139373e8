"""The demo's figures, every one computed from the files of the run that just ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..registry import load_object
from ..runs import RunFolder
from .score import score
from .steps import read_lines

Item = tuple[str, str]  # question type, expected answer
STAGES = ("language", "connector", "sft")  # without the control
CHANCE = "megavlm.megatron_mm.evaluation.chance:chance_accuracy"


def figures(out: Path, data: Path) -> dict[str, Any]:
    """`{curation, training, evaluation}` under the stable keys of `megavlm demo --json`."""
    run = RunFolder.open(out / "train")
    return {
        "curation": score(data / "raw", data / "curation"),
        "training": training(run),
        "evaluation": evaluation(run),
    }


def training(run: RunFolder) -> dict[str, Any]:
    """First loss of the first stage, last loss of the last, tokens per second of steps alone."""
    steps = [line for line in run.metrics(unique=("stage", "step")) if line["stage"] in STAGES and "loss" in line]
    engine = next(event for event in _events(run) if event["kind"] == "engine")
    return {
        "backend": engine["backend"],
        "tensor_parallel": engine["tensor_parallel"],
        "steps": len(steps),
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
        "tokens_per_second": round(sum(s["tokens"] for s in steps) / sum(s["seconds"] for s in steps)),
    }


def _events(run: RunFolder) -> list[dict[str, Any]]:
    return [event for attempt in run.attempts() for event in attempt.events()]


def evaluation(run: RunFolder) -> dict[str, Any]:
    """Accuracies by greedy exact match; chance is the best constant answer of each question type."""
    before, after, control = (_predictions(run, stage, "text") for stage in ("language", "sft", "control"))
    visual, blind = _predictions(run, "sft", "vqa"), _predictions(run, "sft", "vqa.blind")
    return {
        "vl_accuracy": _accuracy(visual),
        "vl_chance": _chance(visual),
        "vl_blind": _accuracy(blind),
        "vl_accuracy_by_kind": {kind: _accuracy(items) for kind, items in _by_kind(visual).items()},
        "text_accuracy_before": _accuracy(before),
        "text_accuracy_after": _accuracy(after),
        "text_chance": _chance(before),
        "text_gate": _verdict(run, "gate"),
        "control_text_accuracy_after": _accuracy(control),
        "control_text_gate": _verdict(run, "control"),
    }


def _verdict(run: RunFolder, stage: str) -> str:
    return str(json.loads(run.path("gate", f"{stage}.json").read_text())["verdict"])


def _predictions(run: RunFolder, stage: str, name: str) -> list[dict[str, Any]]:
    return read_lines(run.path("predictions", stage, f"{name}.jsonl"))


def _by_kind(items: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return {kind: [item for item in items if item["kind"] == kind] for kind in sorted({i["kind"] for i in items})}


def _accuracy(items: list[dict[str, Any]]) -> float:
    return round(sum(item["correct"] for item in items) / len(items), 4)


def _chance(items: list[dict[str, Any]]) -> float:
    return round(float(load_object(CHANCE)([(item["kind"], item["expected"]) for item in items])), 4)
