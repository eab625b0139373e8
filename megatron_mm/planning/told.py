"""A plan for people and for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from ..tracing.contracts import RankTrace
from .contracts import Estimate, Memory, StepTime
from .estimate import Layout, layout_of
from .refuse import GIB, Refusal
from .saves import HOUR, Saves
from .search import CAUSES, Found, why_slower

KINDS = [f.name for f in dataclasses.fields(Memory) if f.name != "stage"]


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """What there is to say of a stage. own: in the recipe's layout; None where that divides nothing."""

    stage: str
    layout: Layout  # the recipe's
    origin: str  # of its load
    own: Estimate | None
    refused: Refusal | None  # the recipe's layout
    found: Found
    top: int  # so many of what was found are told
    saves: Saves | None  # of the fastest
    traces: tuple[RankTrace, ...] = ()  # of the recipe's layout

    @property
    def best(self) -> Estimate | None:
        """The fastest that fits."""
        return self.found.rows[0] if self.found.rows else None

    @property
    def shown(self) -> list[Estimate]:
        """The fastest ones, and the recipe's own last where it is none of them."""
        return [*self.found.rows[: self.top], *([self.own] if self.own and not self._own_is_among_them else [])]

    @property
    def _own_is_among_them(self) -> bool:
        return any(self.is_own(row) for row in self.found.rows[: self.top])

    def is_own(self, row: Estimate) -> bool:
        """Whether this is the recipe's layout."""
        return self.own is not None and row.layout() == self.own.layout()

    def record(self) -> dict[str, Any]:
        """Plain data under stable keys."""
        return {
            "load": self.origin,
            "own": self.own.record() if self.own else None,
            "refused": self.refused.record() if self.refused else None,
            "proposed": [self._proposal(row) for row in self.found.rows[: self.top]],
            "tried": self.found.tried,
            "not_possible": self.found.refused,
            "checkpoint": dataclasses.asdict(self.saves) if self.saves else None,
            "trace": [dataclasses.asdict(rank) | {"peak": rank.peak.total} for rank in self.traces],
        }

    def _proposal(self, row: Estimate) -> dict[str, Any]:
        return {**row.record(), "slower": self._slower(row), "overrides": self.overrides(row)}

    def overrides(self, row: Estimate) -> list[str]:
        """What turns the recipe's layout into this one."""
        return layout_of(row).overrides(self.layout, self.stage)

    def _slower(self, row: Estimate) -> dict[str, Any] | None:
        """Than the fastest: by how much, and the cause that costs it most of that."""
        best = self.best
        if best is None or row.time.total <= best.time.total:
            return None
        cause, seconds = why_slower(row, best)
        return {"seconds": row.time.total - best.time.total, "cause": cause, "by_cause": seconds}

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"stage {self.stage}: {self.origin}"
        if self.refused:
            error = self.refused.error
            yield f"  the recipe's layout is refused: {error.what}\n    where: {error.where}\n    fix:   {error.fix}"
        if not self.found.rows:
            yield from self._nothing()
        if self.shown:
            yield from self._table()
        if self.best or self.own:
            yield from details(self.best or self.own)  # type: ignore[arg-type]
        if self.saves:
            yield saved(self.saves)
        if self.own and self.traces:
            yield from compared(self.own, self.traces)

    def _table(self) -> Iterator[str]:
        yield f"  {'layout':<50}{'GiB':>6}{'step':>9}{'MFU':>7}{'tokens/s/GPU':>14}{'days':>8}"
        for row in self.shown:
            lost, job = self._slower(row), row.job
            why = f"  {lost['by_cause']:+.3g} s: {CAUSES[lost['cause']]}" if lost else ""
            own = "  the recipe's" if self.is_own(row) else ""
            yield (
                f"  {words(row):<50}{row.worst.total / GIB:>6.1f}{row.time.total:>7.3g} s{row.mfu:>7.1%}"
                f"{job.load.tokens / row.time.total / job.world:>14,.0f}{row.days:>8.3g}{why}{own}"
            )
        if self.found.rows:
            yield f"  the fastest of {self.found.tried} layouts; +: what costs it most against the first"
            yield f"  the first: {' '.join(self.overrides(self.found.rows[0])) or 'as the recipe has it'}"

    def _nothing(self) -> Iterator[str]:
        if self.found.tried:
            yield f"  none of {self.found.tried} layouts fits"
        if self.found.nearest and self.found.nearest.estimate:
            yield f"  nearest: {words(self.found.nearest.estimate)}: {self.found.nearest.error.what}"


def words(row: Estimate) -> str:
    """A layout in short; sp is sequence parallelism."""
    of, job = row.job.parallel, row.job
    axes = {"tp": of.tp, "pp": of.pp, "vp": of.vp, "cp": of.cp, "dp": job.dp}
    split = " ".join(f"{name}{count}" for name, count in axes.items() if count > 1 or name == "dp")
    return f"{split}{' sp' * of.sequence_parallel}, {job.micro_batches} packs, recompute {job.recompute}"


def details(row: Estimate) -> Iterator[str]:
    """Memory by pipeline stage and kind, and the step's time by cause, of one layout."""
    yield f"  {words(row)}, GiB of {row.job.gpu.memory / GIB:.0f}:"
    yield f"    {'pipeline stage':<16}{''.join(f'{kind:>13}' for kind in [*KINDS, 'total'])}"
    for rank in row.ranks:
        sizes = [*(getattr(rank, kind) for kind in KINDS), rank.total]
        yield f"    {rank.stage:<16}{''.join(f'{size / GIB:>13.2f}' for size in sizes)}"
    causes = [(CAUSES[f.name], getattr(row.time, f.name)) for f in dataclasses.fields(StepTime)]
    largest = sorted((each for each in causes if each[1] > 0), key=lambda each: -each[1])
    yield "    a step: " + ", ".join(f"{seconds:.3g} s {cause}" for cause, seconds in largest)
    yield f"    {row.steps:,} steps: {row.days:.3g} days, {24 * row.days * row.job.world:,.0f} GPU-hours"


def compared(row: Estimate, traces: Sequence[RankTrace]) -> Iterator[str]:
    """A trace's peaks beside the formulas', by pipeline stage."""
    seconds = sum(rank.seconds for rank in traces)
    yield f"  traced, in {seconds:.0f} s, GiB: {len(traces)} ranks that differ, and nothing failed"
    for memory in row.ranks:
        peak = max(rank.peak.total for rank in traces if rank.pipeline_stage == memory.stage)
        of = f"{memory.total / GIB:.2f} by formulas, {memory.total / peak - 1:+.1%}"
        yield f"    pipeline stage {memory.stage}: {peak / GIB:.2f}, and {of}"


def saved(of: Saves) -> str:
    """Checkpoints in a line."""
    size = f"{of.size / 1e9:,.3g} GB"
    took = f"  a checkpoint of {size} is written in {of.writing:.3g} s, in {of.stall:.2g} s of which nobody trains"
    best = f"with a failure every {of.mtbf / HOUR:.3g} h, save every {of.every:,} steps: {of.lost:.2%} of the time"
    return f"{took}; {best} is lost"
