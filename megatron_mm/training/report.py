"""The report's chapter on training: what each stage trained on which packs, its loss, its speed, what was replaced."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any

from megavlm.platform.config import load_recipe

from ..config import ModelConfig, Stage, Stages
from ..data.build import StageData
from ..data.manifest import Manifest
from ..data.stats import stats
from .outcome import stage_steps
from .stages import frozen_axes
from .watchers.shown import add_watched

if TYPE_CHECKING:
    from megavlm.platform.report import Report
    from megavlm.platform.runs import RunFolder

Lines = list[dict[str, Any]]

MOST_ROWS = 50  # of a table of events

INTRO = (
    "Every stage goes on from the weights of the one before it. The loss is the cross entropy per learnt token of a "
    "global batch, before its update; tokens per second count all positions of the packs, padding included."
)


def add_sections(run: RunFolder, report: Report) -> None:
    """Add what metrics.jsonl and the stages' manifests hold; does nothing for a run that trained nothing."""
    if not run.path("stages").is_dir():
        return
    recipe = load_recipe(str(run.path("config.yaml")))
    stages: Stages = recipe.section("stages")
    steps = {name: found for name in stages.root if (found := stage_steps(run, name))}
    if not steps:
        return
    report.section("Training", INTRO)
    engine = _engine(run)
    made = f", optimizer {engine['optimizer']}" if "optimizer" in engine else ""
    report.text(f"Engine: {engine['backend']} over {engine['collectives']}, {engine['world']} process(es){made}.")
    report.line_chart("Loss", {name: _curve(lines, "loss") for name, lines in steps.items()}, "step", "loss")
    rows = [_stage_row(name, stages[name], StageData.of(recipe, name).model, lines) for name, lines in steps.items()]
    report.table(rows, list(rows[0]), title="Stages")
    packs = [_pack_row(run, name) for name in steps]
    report.table(packs, list(packs[0]), title="Packs")
    speed = {name: _curve(lines, "tflops_per_device") for name, lines in steps.items() if "mfu" in lines[-1]}
    if speed:
        report.line_chart("Model TFLOP/s per device", speed, "step")
    report.line_chart("Gradient norm", {name: _curve(lines, "grad_norm") for name, lines in steps.items()}, "step")
    _add_events(run, report)
    add_watched(run, report)


def _engine(run: RunFolder) -> dict[str, Any]:
    return _events(run, "engine")[-1]


def _events(run: RunFolder, kind: str) -> Lines:
    return [event for attempt in run.attempts() for event in attempt.events() if event["kind"] == kind]


def _curve(lines: Lines, field: str) -> list[tuple[float, float]]:
    return [(line["step"], math.nan if line[field] is None else line[field]) for line in lines]


def _stage_row(name: str, stage: Stage, model: ModelConfig, lines: Lines) -> dict[str, Any]:
    parallel = stage.parallel
    seconds = sum(line["seconds"] for line in lines)
    return {
        "stage": name,
        "trains": ", ".join(stage.train),
        "frozen": ", ".join(frozen_axes(stage)) or "nothing",
        "parameters": model.trained_parameters(stage.train),
        "layout": f"tp {parallel.tp}, pp {parallel.pp}, {stage.precision}",
        "steps": f"{lines[-1]['step']} of {stage.steps}",
        "first loss": lines[0]["loss"],
        "last loss": lines[-1]["loss"],
        "tokens/s": round(sum(line["tokens"] for line in lines) / seconds),
        "MFU": _median(lines, "mfu"),
        "TFLOP/s per device": _median(lines, "tflops_per_device"),
        "peak memory, GiB": max((line["memory"] for line in lines if line.get("memory") is not None), default=None),
        "seconds": round(seconds, 1),
        "waited for data": round(sum(line["waited"] for line in lines), 1),
    }


def _median(lines: Lines, field: str) -> float | None:
    values = [line[field] for line in lines if line.get(field) is not None]
    return statistics.median(values) if values else None


def _pack_row(run: RunFolder, name: str) -> dict[str, Any]:
    told = stats(Manifest(run.path("stages", name, "packs")))
    return {
        "stage": name,
        "packs": told["packs"],
        "tokens each": told["sequence_length"],
        "fill": told["fill"],
        "learnt tokens": told["tokens_learnt"],
        "tiles": told["tiles"],
        "packs without an image": told["packs_without_image"],
    }


def _add_events(run: RunFolder, report: Report) -> None:
    saves = [event["written"] for event in _events(run, "saved")]
    if saves:
        report.figures({"checkpoints": len(saves), "slowest checkpoint, seconds": max(saves)})
    strange = [*_events(run, "spike"), *_events(run, "skipped_update")]
    if strange:
        rows = [event | {"samples": ", ".join(event["samples"][:4])} for event in strange[:MOST_ROWS]]
        columns = ["stage", "step", "batch", "kind", "loss", "grad_norm", "packs", "samples"]
        report.table(rows, columns, title="Loss spikes, and updates left out for a gradient that was not finite")
    bad = _events(run, "bad_sample")
    if bad:
        columns = ["set", "key", "reason", "detail", "row", "instead"]
        report.table(bad, columns, title="Samples unreadable while training, and what was learnt instead")
