"""A plan as a page: memory by rank, the pipeline's timeline, throughput by layout, a step's time by cause."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megavlm.platform.report import Report, Span

from ..tracing.contracts import RankTrace
from .contracts import Estimate
from .passes import timeline
from .refuse import GIB
from .told import KINDS, StagePlan, words

CAUSES = 8  # of a peak in its table
SHOWN = {  # what a step's time is drawn as: fields of StepTime, small ones together
    "products": ("products",),
    "attention": ("mixing",),
    "bound by memory": ("moved",),
    "tower": ("tower",),
    "tensor and context traffic": ("tensor",),
    "pipeline": ("bubble", "pipeline"),
    "gradients and weights": ("data",),
    "update and data": ("update", "loading"),
}
INTRO = "By formulas; how exact they are stands in docs/plan.md. GiB are 2^30 bytes, memory is that of one GPU."
MEMORY = "Memory of the fullest rank of each pipeline stage, GiB"


def write_page(path: Path, recipe: str, plans: Sequence[StagePlan]) -> Path:
    """One HTML file of a recipe's stages."""
    report = Report(f"Plan of {recipe}", "MegaVLM plan")
    for plan in plans:
        add_plan(report, plan)
    return report.write(path)


def add_plan(report: Report, plan: StagePlan) -> None:
    """A stage: what is proposed, and the recipe's own layout, beside it what was traced."""
    report.section(f"Stage {plan.stage}", INTRO)
    report.text(plan.origin)
    if plan.refused:
        report.verdict(f"The recipe's layout is refused: {plan.refused.error.what}", passed=False)
    add_layouts(report, plan)
    if plan.own:
        add_estimate(report, f"Stage {plan.stage}: the recipe's layout", plan.own, plan.traces)
    if plan.best and not plan.is_own(plan.best):
        add_estimate(report, f"Stage {plan.stage}: the fastest layout", plan.best)


def add_layouts(report: Report, plan: StagePlan) -> None:
    """What the search found, beside the recipe's own layout."""
    rows = {f"{words(row)}{' (the recipe)' if plan.is_own(row) else ''}": row for row in plan.shown}
    if rows:
        speed = {name: round(row.job.load.tokens / row.time.total / row.job.world) for name, row in rows.items()}
        report.bar_chart("Throughput by layout", speed, "tokens/s per GPU, padding not counted")
        report.stacked_bars("A step's time by cause", {name: causes(row) for name, row in rows.items()}, "seconds")


def add_estimate(report: Report, title: str, row: Estimate, traces: Sequence[RankTrace] = ()) -> None:
    """One layout: its key figures, memory, pipeline, and of a trace the causes of its peaks."""
    report.section(title, words(row))
    report.figures(
        {
            "GPUs": f"{row.job.world} x {row.job.gpu.name}",
            "step, seconds": row.time.total,
            "MFU": f"{row.mfu:.1%}",
            "days": row.days,
        }
    )
    limit = {f"{row.job.gpu.name}: {row.job.gpu.memory / GIB:.0f} GiB": row.job.gpu.memory / GIB}
    report.stacked_bars(MEMORY, memory(row, traces), "GiB", limit)
    if row.job.parallel.pp > 1:
        add_timeline(report, row)
    if traces:
        columns = ["cause", *(f"rank {each.rank}" for each in traces)]
        report.table(peaks(traces), columns, title="What the traced peaks are made of, GiB")


def causes(row: Estimate) -> dict[str, float]:
    """Seconds of a step as the page groups them, without those that take none."""
    found = {name: sum(getattr(row.time, field) for field in fields) for name, fields in SHOWN.items()}
    return {name: seconds for name, seconds in found.items() if seconds > 0}


def memory(row: Estimate, traces: Sequence[RankTrace]) -> dict[str, dict[str, float]]:
    """GiB by kind: of each pipeline stage by formulas, and under it the fullest of its ranks that were traced."""
    bars: dict[str, dict[str, float]] = {}
    for rank in row.ranks:
        bars[f"stage {rank.stage}"] = {kind: getattr(rank, kind) / GIB for kind in KINDS}
        traced = [each for each in traces if each.pipeline_stage == rank.stage]
        if traced:
            fullest = max(traced, key=lambda each: each.peak.total)
            kinds: dict[str, float] = {kind: size / GIB for kind, size in fullest.peak.kinds.items()}
            bars[f"stage {rank.stage}, traced"] = kinds
    return bars


def add_timeline(report: Report, row: Estimate) -> None:
    """What every pipeline stage does when. Numbers are micro-batches; the paler, the later the chunk of layers."""
    events, shown = timeline(row.job)
    rows: dict[str, list[Span]] = {f"stage {stage}": [] for stage in range(row.job.parallel.pp)}
    for event in events:
        series = "backward" if event.of.backward else "forward"
        shade = event.of.chunk / max(row.job.parallel.vp - 1, 1)
        label = str(event.of.micro_batch)
        rows[f"stage {event.stage}"].append(Span(event.start, event.end, series, label, shade))
    of = "" if shown == row.job.micro_batches else f" (the first {shown} of {row.job.micro_batches})"
    report.spans(f"The pipeline's timeline, by micro-batch{of}", rows, "seconds")


def peaks(traces: Sequence[RankTrace]) -> list[dict[str, object]]:
    """GiB of the largest causes of each traced rank's fullest moment, a column for each; None where it is small."""
    found = {f"rank {each.rank}": dict(each.peak.causes[:CAUSES]) for each in traces}
    names = dict.fromkeys(cause for causes in found.values() for cause in causes)
    return [
        {"cause": name} | {rank: causes[name] / GIB if name in causes else None for rank, causes in found.items()}
        for name in names
    ]
