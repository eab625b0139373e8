"""The report's chapter that holds a run against its plan: a step's time and memory. Loads no torch."""

from __future__ import annotations

import re
import statistics
from typing import TYPE_CHECKING, Any

from megavlm.platform.config import Recipe, load_recipe

from ..config import Stages
from ..data.manifest import Manifest
from ..training.outcome import stage_steps
from .contracts import Gpu
from .estimate import estimate
from .hardware import GIB, gpus

if TYPE_CHECKING:
    from megavlm.platform.report import Report
    from megavlm.platform.runs import RunFolder

INTRO = (
    "What the formulas of `megavlm plan` say of these packs on this hardware, and what was measured: the median step, "
    "and the most memory of any rank."
)


def add_sections(run: RunFolder, report: Report) -> None:
    """Add a row for each stage that trained on a GPU which plans are made for; nothing where nothing was trained."""
    events = [event for attempt in run.attempts() for event in attempt.events()]
    engines = {event["stage"]: event for event in events if event["kind"] == "engine"}
    if not engines:
        return
    recipe = load_recipe(str(run.path("config.yaml")))
    stages: Stages = recipe.section("stages")
    steps = {name: lines for name in stages.root if name in engines and (lines := stage_steps(run, name))}
    if not steps:
        return
    report.section("Plan and run", INTRO)
    rows = [row for name, lines in steps.items() if (row := _row(run, recipe, name, engines[name], lines))]
    if rows:
        report.table(rows, list(rows[0]), title="Planned and measured")
    else:
        devices = ", ".join(sorted({engine["device"] for engine in engines.values()}))
        report.text(f"Left out: it ran on {devices}, and plans are made for {', '.join(gpus())}.")


def gpu_of(device: str, memory: float | None) -> Gpu | None:
    """The GPU of this name ("NVIDIA A100-SXM4-80GB") that comes nearest in GiB; None where no plan is made for it."""
    words = set(re.findall(r"[a-z0-9]+", device.lower()))
    alike = [gpu for gpu in gpus().values() if gpu.name.split("-")[0] in words]
    return min(alike, key=lambda gpu: abs(gpu.memory / GIB - (memory or 0.0)), default=None)


def _row(
    run: RunFolder, recipe: Recipe, name: str, engine: dict[str, Any], lines: list[dict[str, Any]]
) -> dict[str, Any] | None:
    gpu = gpu_of(engine["device"], lines[-1].get("memory_of"))
    if gpu is None:
        return None
    manifest = Manifest(run.path("stages", name, "packs"))
    planned = estimate(recipe, name, gpu, engine["world"], manifest=manifest)
    seconds = statistics.median(line["seconds"] for line in lines)
    memory = max(line["memory"] for line in lines)
    return {
        "stage": name,
        "GPUs": f"{engine['world']} x {gpu.name}",
        "step planned, s": planned.time.total,
        "step measured, s": seconds,
        "step off by": f"{planned.time.total / seconds - 1:+.1%}",
        "memory planned, GiB": planned.worst.total / GIB,
        "memory measured, GiB": memory,
        "memory off by": f"{planned.worst.total / GIB / memory - 1:+.1%}",
        "MFU planned": planned.mfu,
    }
