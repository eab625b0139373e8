"""A line of metrics.jsonl for people. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SLOW = 1.1  # a rank that takes so many times the median is worth a word


def step_line(told: Mapping[str, Any], steps: int) -> str:
    """`step 120/5000 loss 1.234 lr 2.0e-06 gnorm 0.80 | 1,650 tok/s/gpu 37.0 % mfu ... | eta 5h12`.

    Whatever `told` lacks, as lines of earlier versions do, is left out.
    """
    head = f"step {told['step']}/{steps} loss {_number(told['loss'], '.4f')} lr {told['lr']:.1e} "
    head += f"gnorm {_number(told['grad_norm'], '.2f')}"
    if not told.get("updated", True):
        head += " (update skipped)"
    rest = [" ".join(_pace(told)), " ".join(_inside(told))]
    if told.get("eta") is not None:
        rest.append(f"eta {duration(told['eta'])}")
    return " | ".join([head, *(part for part in rest if part)])


def _pace(told: Mapping[str, Any]) -> Iterator[str]:
    unit = "gpu" if told.get("memory_of") else "process"
    if (speed := told.get("tokens_per_second_per_device")) is not None:
        yield f"{speed:,.0f} tok/s/{unit}"
    if told.get("mfu") is not None:
        yield f"{told['mfu']:.1%} mfu".replace("%", " %")
    if told.get("memory") is not None:
        yield f"{told['memory']:.1f}/{told['memory_of']:.0f} GiB" if told["memory_of"] else f"{told['memory']:.1f} GiB"
    yield f"data {1000 * told['waited']:.0f} ms"
    if told.get("slowness", 1.0) > SLOW:
        yield f"rank {told['slowest_rank']} {told['slowness']:.2f}x slow"


def _inside(told: Mapping[str, Any]) -> Iterator[str]:
    if told.get("visual_tokens") is not None:
        seen, read = told["visual_tokens"], told["text_tokens"]
        yield f"image {seen / max(seen + read, 1):.0%}".replace("%", " %")
        yield f"padding {told['padding']:.1%}".replace("%", " %")


def duration(seconds: float) -> str:
    """`47s`, `3m05`, `5h12`, `2d07h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def _number(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)
