"""The funnel now and then, as words on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from .decide import Line
from .options import Variant, shown
from .plan import STANDS

Funnel = Sequence[Line]


def difference(now: Funnel, then: Funnel) -> list[str]:
    """One configuration beside the run: counts now and then, and each reason that either has."""
    width = _width(now)
    head = "".join(f"{name:>{size}}" for name, size in (("in now", 11), ("then", 11), ("kept now", 11), ("then", 11)))
    lines = [f"{'stage':<{width}}{head}{'difference':>12}  dropped then (now)"]
    for old, new in zip(now, then, strict=True):
        counts = f"{old.received:>11}{new.received:>11}{old.kept:>11}{new.kept:>11}{new.kept - old.kept:>+12}"
        lines.append(f"{old.stage:<{width}}{counts}  {_reasons(old, new)}".rstrip())
    return lines


def _reasons(old: Line, new: Line) -> str:
    words = []
    for reason in sorted(old.dropped.keys() | new.dropped.keys()):
        was, then = old.dropped.get(reason, 0), new.dropped.get(reason, 0)
        words.append(f"{reason} {then}" if then == was else f"{reason} {then} ({was})")
    return ", ".join([*words, *([f"not measured {new.not_measured}"] if new.not_measured else [])])


def sweep(present: Variant, now: Funnel, tried: Sequence[Variant], funnels: Sequence[Funnel]) -> list[str]:
    """What each stage keeps, a column for each configuration; a last row where something was not measured."""
    columns = [now, *funnels]
    keys = [key for key in present.options if any(one.options[key] != present.options[key] for one in tried)]
    heads = [(key, [shown(one.options[key]) for one in (present, *tried)]) for key in keys]
    rows = [(line.stage, [str(of[place].kept) for of in columns]) for place, line in enumerate(now)]
    missing = [sum(line.not_measured for line in of) for of in columns]
    rows += [("(not measured)", list(map(str, missing)))] if any(missing) else []
    table = [("kept", ["now", *[""] * len(tried)]), *heads, *rows]
    first = max(len(name) for name, _ in table)
    widths = [max(9, *(len(cells[place]) for _, cells in table)) + 2 for place in range(len(columns))]
    return [
        f"{name:<{first}}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()
        for name, cells in table
    ]


def _width(lines: Funnel) -> int:
    return max(14, *(len(line.stage) for line in lines)) + 2


def held_fixed(funnels: Sequence[Funnel]) -> list[str]:
    """What a reader has to know of these figures."""
    lines = [line for of in funnels for line in of]
    notes = ["Measurements, centroids and assignments are those of the run."]
    if any(line.stage == "cluster" and line.decided == STANDS for line in lines):
        notes.append("A run would train other centroids on these images: lines after 'cluster' are an estimate.")
    for stage in dict.fromkeys(line.stage for line in lines if line.not_measured):
        notes.append(f"Not measured: images that get to '{stage}' only now. Nobody knows what becomes of them.")
    return notes
