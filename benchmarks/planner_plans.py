"""Every full-size recipe on its published hardware: what we estimate beside what was published.

`python benchmarks/planner_plans.py` takes some seconds, loads no torch, and writes docs/plans.md. A test writes the
page again and compares: whoever changes a formula, a constant or a recipe runs this.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from megavlm.megatron_mm.planning.contracts import Estimate
from megavlm.megatron_mm.planning.published import Row, plans, row_of
from megavlm.megatron_mm.planning.refuse import GIB
from megavlm.megatron_mm.planning.told import words

PAGE = Path(__file__).resolve().parents[1] / "docs" / "plans.md"
HEAD = """\
# Plans of every recipe on its published hardware

What `megavlm plan` says by formulas of each full-size recipe, stage by stage in the recipe's own layout, beside what
was published of it. Written by `python benchmarks/planner_plans.py`; a test compares. Nothing here has been run by us.
How exact the formulas are where runs are known in detail: [planner_time](../benchmarks/planner_time.md).

GiB: the fullest GPU's, of what it has beside CUDA's own. Days leave out saves, failures and evaluation. Ours is what
this project would take with its own layout and packing, which is not what the published runs did: they padded, and
split with ZeRO.
"""

WHY = """
What we think stands behind the larger differences: what NVLM's published code does not overlap
([planner_time](../benchmarks/planner_time.md#nvlms-table-3)); in Eagle's first stage packs of 2,048 positions that hold
one image and half of them nothing, where the published code pads to the longest of eight samples; EVE's and
LLaVA-OneVision's samples, of which only the sizes of files and the packing's ratio are known."""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page([row_of(plan) for plan in plans()]))


def page(rows: list[Row]) -> str:
    """The page's text."""
    return "\n".join([HEAD, *_compared(rows), "", *_plans(rows), "", *_sources(rows)]) + "\n"


def _compared(rows: list[Row]) -> Iterator[str]:
    yield "## Beside what was published\n"
    yield "| | machines | published | ours | error |\n|---|---|---|---|---|"
    for row in rows:
        if row.error is not None:
            yield f"| {_name(row)} | {_machines(row)} | {_published(row)} | {_ours(row)} | {row.error:+.0%} |"

    yield WHY


def _plans(rows: list[Row]) -> Iterator[str]:
    yield "## All plans\n"
    yield "| recipe | stage | machines | layout | GiB | a step | MFU | days |\n|---|---|---|---|---|---|---|---|"
    for row in rows:
        yield from (_line(row, each) for each in row.estimates)


def _line(row: Row, of: Estimate) -> str:
    memory = f"{of.worst.total / GIB:.1f} of {of.job.gpu.memory / GIB:.0f}"
    over = " (too much)" if of.job.stage in row.too_much else ""
    figures = [f"{memory}{over}", f"{of.time.total:.3g} s", f"{of.mfu:.0%}", f"{of.days:.3g}"]
    return "| " + " | ".join([row.plan.name, of.job.stage, _machines(row), words(of), *figures]) + " |"


def _sources(rows: list[Row]) -> Iterator[str]:
    yield "## Where hardware, times and samples come from\n"
    for row in rows:
        plan = row.plan
        told = [f"machines: {plan.hardware}"] + ([f"time: {plan.time}"] if plan.time else [])
        changed = [f"changed: {', '.join(f'`{each}`' for each in plan.changes)}"] if plan.changes else []
        yield f"- **{_name(row)}** ({', '.join(plan.stages)}). {'; '.join([*told, *changed])}."
        yield from (f"  - {', '.join(stages)}: {content}" for content, stages in _contents(row).items())


def _contents(row: Row) -> dict[str, list[str]]:
    """What samples hold -> the stages in which they do."""
    found: dict[str, list[str]] = {}
    for stage, origin in ((each.job.stage, each.job.load.origin) for each in row.estimates):
        own = row.plan.samples.get(stage)
        found.setdefault(origin + (f" ({own.why})" if own else ""), []).append(stage)
    return found


def _name(row: Row) -> str:
    return f"{row.plan.title} ({row.plan.recipe})" if row.plan.title else row.plan.name


def _machines(row: Row) -> str:
    return f"{row.plan.gpus} x {row.plan.gpu}"


def _published(row: Row) -> str:
    if row.plan.step_seconds is not None:
        return f"{row.plan.step_seconds:.3f} s a step"
    return f"{row.plan.hours:g} h: {', '.join(row.plan.stages)}"


def _ours(row: Row) -> str:
    return f"{row.estimates[0].time.total:.3f} s" if row.plan.step_seconds is not None else f"{24 * row.days:.3g} h"


if __name__ == "__main__":
    main()
