"""Memory of the shipped recipes: formulas against the trace of their code, at each stage's own layout.

    OMP_NUM_THREADS=1 python benchmarks/planner_memory.py [RECIPE ...]

walks the first rank of the first, middle and last pipeline stage (all recipes: half an hour of CPU), keeps what it
found in planner_memory.json beside this file, and writes planner_memory.md. `--table` writes the table anew from there.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.planning.contracts import Memory
from megavlm.megatron_mm.planning.estimate import Task
from megavlm.megatron_mm.planning.hardware import find_gpu
from megavlm.megatron_mm.planning.load import load_of
from megavlm.megatron_mm.planning.memory import ranks
from megavlm.megatron_mm.planning.published import plans
from megavlm.platform.config import load_recipe

FOUND = Path(__file__).with_suffix(".json")
RESULT = Path(__file__).with_suffix(".md")
STEP = ("look", "schedule", "learn", "finish", "update")
GB, BOUND = 1e9, 0.05
HEAD = """# Memory by formulas and by trace

{when}, {machine}; `python benchmarks/planner_memory.py`. The shipped recipes whole, at the
layouts that they have, with the assumed load (planning/load.py). GB of 1e9 bytes, on the first rank of the first,
middle and last pipeline stage, at the fullest moment of a step. No weights are drawn and no GPU is asked: the trace
walks the recipe's own code on fake tensors, norms and updates as on GPUs. Recipes that are not here have not been
walked yet.

{summary}

| recipe | stage | GPUs | pipeline stage | trace | formulas | error | fullest in |
|---|---|---:|---:|---:|---:|---:|---|
"""


def main() -> None:
    """Walk what is asked for, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*")
    parser.add_argument("--table", action="store_true", help="walk nothing")
    args = parser.parse_args()
    if not args.table:
        for recipe in args.recipes or recipes():
            walk(recipe)
    RESULT.write_text(table(known()))


def recipes() -> list[str]:
    """All of full size."""
    return sorted({plan.recipe for plan in plans()})


def processes(spec: StageData) -> int:
    """GPUs: at least 16, and four replicas of what is split over more."""
    split = spec.stage.parallel.split
    return max(16, 4 * split if split > 16 else split)


def known() -> dict[str, Any]:
    """What traces found, by recipe, stage and pipeline stage."""
    return json.loads(FOUND.read_text()) if FOUND.exists() else {}


def walk(recipe: str) -> None:
    """Every stage of a recipe that trains."""
    for stage in load_recipe(recipe).section("stages").root:
        spec = StageData.of(load_recipe(recipe), stage)
        world = processes(spec)
        for place in places(spec):
            found = known() | {f"{recipe} {stage} {place}": {"world": world} | traced(spec, place, world)}
            FOUND.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def places(spec: StageData) -> list[int]:
    """Pipeline stages: the first, the one in the middle, the last."""
    pp = spec.stage.parallel.pp
    return sorted({0, pp // 2, pp - 1})


def traced(spec: StageData, place: int, world: int) -> dict[str, Any]:
    """Parameters, and bytes at the fullest moment of each phase."""
    from megavlm.megatron_mm.tracing.rank import trace_rank  # loads torch

    trace = trace_rank(spec, place * world // spec.stage.parallel.pp, world, load_of(spec))
    peaks = {peak.phase: peak.total for peak in trace.peaks if peak.phase in STEP}
    return {"parameters": trace.parameters, "standing": trace.standing, "peaks": peaks}


def told(recipe: str, stage: str, world: int) -> tuple[Memory, ...]:
    """The formulas' ranks."""
    spec = StageData.of(load_recipe(recipe), stage)
    task = Task.of(spec, load_of(spec))
    return ranks(task.job(find_gpu("h100"), world, task.layout), task.model)


def table(found: dict[str, Any]) -> str:
    """The page's text."""
    rows = list(rows_of(found))
    errors = [abs(error) for _, error in rows]
    within = sum(error <= BOUND for error in errors)
    summary = (
        f"{within} of {len(rows)} ranks within {BOUND:.0%}; median error {statistics.median(errors):.1%}, "
        f"worst {max(errors):.1%}."
    )
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    head = HEAD.format(when=f"{datetime.now(UTC):%Y-%m-%d}", machine=machine, summary=summary)
    return head + "".join(row for row, _ in rows)


def rows_of(found: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """(a row, its error)."""
    for name, of in found.items():
        recipe, stage, place = name.split()
        phase = max(STEP, key=lambda each: of["peaks"].get(each, 0))
        trace = of["peaks"][phase]
        formulas = told(recipe, stage, of["world"])[int(place)].total
        error = formulas / trace - 1
        figures = [f"{trace / GB:.2f}", f"{formulas / GB:.2f}", f"{error:+.1%}", phase]
        yield "| " + " | ".join([recipe, stage, str(of["world"]), place, *figures]) + " |\n", error


if __name__ == "__main__":
    main()
