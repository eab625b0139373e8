"""A pilot's answer: as JSON with keys that stay, and as a table for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .forecast import Forecast

WIDTHS = "{:<18}{:>13}{:>13}{:>12}{:>10}{:>10}  {}"


def answer(forecast: Forecast, told: dict[str, Any], warnings: Sequence[str]) -> dict[str, Any]:
    """`told`: of the pilot and of the source.

    Seconds are wall time; `memory_bytes` are of the largest worker, `memory_bytes_together` of all processes at a time.
    """
    stages = [
        {
            "stage": one.stage,
            "images_in": one.images_in,
            "kept": one.kept,
            "seconds": round(one.seconds, 2),
            "worker_seconds": round(one.worker_seconds, 2),
            "rate": round(one.rate, 3),
            "label": one.label,
            "disk_bytes": one.disk,
            "memory_bytes": one.memory,
            "note": one.note,
        }
        for one in forecast.stages
    ]
    worked = sum(one.worker_seconds for one in forecast.stages) + forecast.rest_seconds
    totals = {
        "seconds": round(sum(one.seconds for one in forecast.stages) + forecast.rest_seconds, 2),
        "worker_hours": round(worked / 3600, 4),
        "disk_bytes": sum(one.disk for one in forecast.stages) + forecast.rest_disk,
        "memory_bytes": max((one.memory for one in forecast.stages if one.memory is not None), default=None),
        "memory_bytes_together": max((one.together for one in forecast.stages if one.together), default=None),
        "images_out": forecast.stages[-1].kept,
    }
    return told | {"stages": stages, "forecast": totals, "warnings": list(warnings)}


def lines(told: dict[str, Any]) -> Iterator[str]:
    """The table, the totals, what was scaled, and the warnings."""
    pilot, source, total = told["pilot"], told["source"], told["forecast"]
    tried = f"{pilot['samples']:,} samples of {pilot['shards']:,} shards in {duration(pilot['seconds'])}"
    yield f"pilot: {tried}; {pilot['run']}"
    yield f"source: {source['samples']:,} samples ({source['label']}) in {source['shards']:,} shards"
    yield from scaled(pilot["scaled"])
    if total is None:
        return
    yield ""
    yield WIDTHS.format("stage", "images in", "kept", "time", "disk", "memory", "label")
    for one in told["stages"]:
        numbers = f"{one['images_in']:,}", f"{one['kept']:,}", duration(one["seconds"])
        label = one["label"] + (f"  ({one['note']})" if one["note"] else "")
        yield WIDTHS.format(one["stage"], *numbers, size(one["disk_bytes"]), size(one["memory_bytes"]), label)
    yield WIDTHS.format(
        "in all",
        "",
        f"{total['images_out']:,}",
        duration(total["seconds"]),
        size(total["disk_bytes"]),
        size(total["memory_bytes"]),
        f"{total['worker_hours']:,.2f} worker-hours; {size(total['memory_bytes_together'])} of memory at a time",
    )
    for warning in told["warnings"]:
        yield f"note: {warning}"


def scaled(changes: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Every option that is another one in the pilot."""
    for key, change in changes.items():
        yield f"scaled: {key} {change['full']} -> {change['pilot']}"


def duration(seconds: float) -> str:
    """Such as "12.3 s", "45 min", "3.2 h", "4.1 d"."""
    for unit, length, most in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < most:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds / 86_400:.1f} d"


def size(count: int | None) -> str:
    """Bytes with a unit; "?" where nobody measured."""
    if count is None:
        return "?"
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.1f} {unit}" if unit != "B" else f"{count} B"
        value /= 1000
    return f"{value:.1f} TB"
