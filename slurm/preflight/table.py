"""The verdict for people: one line per node, culprits marked, reasons below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .figures import COUNTS, FIGURES
from .judge import Verdict

SHORT = {"nvlinks": "NVLinks", "infiniband_ports": "IB ports", "infiniband_gbit": "IB Gbit/s"}


def table(verdict: Verdict) -> str:
    """Columns that no node has anything for are left out."""
    figures = [name for name in FIGURES if name in verdict.median]
    counts = [name for name in COUNTS if any(name in row["counts"] for row in verdict.rows)]
    heads = [
        "",
        "node",
        *(FIGURES[name].title for name in figures),
        *(SHORT.get(name, COUNTS[name]) for name in counts),
    ]
    rows = [_cells(row, figures, counts) for row in sorted(verdict.rows, key=lambda row: row["ok"])]
    middle = ["", "median", *(FIGURES[name].tell(verdict.median[name]) for name in figures)]
    told = [f"{row['node']}: {row['reason']}" for row in verdict.rows if row["reason"]]
    told += [f"{row['node']}: (note) {row['note']}" for row in verdict.rows if row["note"]]
    last = [middle + [""] * len(counts)] if len(rows) > 1 else []
    lines = [*_aligned([heads, *rows, *last]), "", *told, _summary(verdict)]
    return "\n".join(lines)


def _cells(row: Mapping[str, Any], figures: Sequence[str], counts: Sequence[str]) -> list[str]:
    values = [FIGURES[name].tell(row["figures"][name]) for name in figures]
    return ["" if row["ok"] else "BAD", row["node"], *values, *(f"{row['counts'].get(name, '-')}" for name in counts)]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return ["  ".join(row).rstrip() for row in padded]


def _summary(verdict: Verdict) -> str:
    count = len(verdict.rows)
    if not verdict.bad:
        return f"{count} nodes are fit" if count > 1 else "this node is fit"
    return f"{len(verdict.bad)} of {count} nodes must not be used: {', '.join(verdict.bad)}"
