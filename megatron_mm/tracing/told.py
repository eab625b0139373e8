"""Traces for people and for programs. Loads no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from .contracts import RankTrace

UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
CAUSES = 3  # named of a peak


def record(traces: Mapping[str, Sequence[RankTrace]]) -> dict[str, list[dict[str, Any]]]:
    """Plain data under stable keys: of each stage its ranks, with bytes by kind and the causes of every peak."""
    return {stage: [dataclasses.asdict(rank) for rank in ranks] for stage, ranks in traces.items()}


def readable(traces: Mapping[str, Sequence[RankTrace]]) -> str:
    """A table for each stage: what its ranks hold between steps, and their fullest moment with its largest causes."""
    return "\n".join(line for stage, ranks in traces.items() for line in _table(stage, ranks))


def _table(stage: str, ranks: Sequence[RankTrace]) -> list[str]:
    seconds = sum(rank.seconds for rank in ranks)
    unit, size = max(UNITS.items(), key=lambda each: (each[1] <= max(rank.peak.total for rank in ranks), each[1]))
    head = f"trace of {stage}: {len(ranks)} ranks that differ, walked in {seconds:.0f} s; nothing failed. {unit}:"
    columns = f"  {'rank':>6}{'stage':>7}{'parameters':>16}{'standing':>10}{'peak':>9}  while     most of it"
    return [head, columns, *(_row(rank, size) for rank in ranks)]


def _row(rank: RankTrace, unit: int) -> str:
    standing, peak = sum(rank.standing.values()) / unit, rank.peak
    causes = ", ".join(f"{name} {size / unit:.2f}" for name, size in peak.causes[:CAUSES])
    figures = f"{rank.rank:>6}{rank.pipeline_stage:>7}{rank.parameters:>16,}{standing:>10.2f}{peak.total / unit:>9.2f}"
    return f"  {figures}  {peak.phase:<10}{causes}"
