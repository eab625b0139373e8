"""The run's launches in its report: what became of each attempt, and where the hours went."""

from __future__ import annotations

import time
from typing import Any

from megavlm.platform.report.builder import Report
from megavlm.platform.runs import RunFolder

from . import attempts, jobs
from .hours import KINDS, split

TITLES = {kind: kind.replace("_", "-") for kind in KINDS}


def add_sections(run: RunFolder, report: Report) -> None:
    """Add the attempts and the split of hours of a run that Slurm ran; nothing for any other."""
    if not jobs.current(run) or not run.attempts():
        return
    parts = split(run)
    held = {number: {TITLES[kind]: part.hours()[kind] for kind in KINDS} for number, part in parts.items()}
    unit = "GPU" if all(part.unit == "gpu" for part in parts.values()) else "process"
    report.section(
        "Launches",
        f"Every attempt, and its {unit}-hours. Lost: steps that were done again, and all after the last progress of an "
        "attempt that failed or hung. Productive includes waiting for data and the recipe's evaluations.",
    )
    total = sum(sum(row.values()) for row in held.values())
    productive = sum(row[TITLES["productive"]] for row in held.values())
    report.figures({f"{unit}-hours": round(total, 3), "productive": f"{productive / total:.0%}" if total else None})
    if len(held) > 1:
        report.bar_chart(f"{unit}-hours by attempt", {f"attempt {number}": row for number, row in held.items()})
    rows = [_row(each) | _rounded(held[each["attempt"]]) for each in attempts.attempts(run)]
    report.table(rows, list(rows[0]), title="Attempts")


def _rounded(hours: dict[str, float]) -> dict[str, float]:
    return {kind: round(value, 4) for kind, value in hours.items()}


def _row(each: dict[str, Any]) -> dict[str, Any]:
    nodes, spares, without = (each[key] or [] for key in ("nodes", "spares", "exclude"))
    return {
        "attempt": each["attempt"],
        "job": each["job_id"],
        "began": _moment(each["began"]),
        "nodes": f"{len(nodes)}" + (f" + {len(spares)}" if spares else ""),
        "end": each["verdict"],
        "reason": each["reason"],
        "then": each["action"],
        "without": ", ".join(without) or None,
    }


def _moment(seconds: float | None) -> str | None:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else None
