"""Who does what from when to when: rows of boxes along the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from . import charts

LEAST = 0.017  # of the whole width: a box that has room for its label
PALEST = 0.4


class Span(NamedTuple):
    """A box of the colour of its `series`. shade: 0 to 1, the more the paler. label: stands in it where it fits."""

    start: float
    end: float
    series: str
    label: str = ""
    shade: float = 0.0


def svg(rows: Mapping[str, Sequence[Span]], x_label: str) -> str:
    """SVG of a row of boxes for each entry, the first on top."""
    names = list(dict.fromkeys(span.series for row in rows.values() for span in row))
    last = max((span.end for row in rows.values() for span in row), default=1.0)

    def draw(axes: Any) -> None:
        for place, row in enumerate(rows.values()):
            for (name, shade), boxes in groupby(sorted(row, key=_look), key=_look):
                look = {"facecolor": charts.colour(names.index(name)), "alpha": 1 - shade * (1 - PALEST)}
                extents = [(box.start, box.end - box.start) for box in boxes]
                edge = 0.6 if min(width for _, width in extents) >= LEAST * last / 4 else 0.0  # or it covers the box
                axes.broken_barh(extents, (place - 0.4, 0.8), edgecolor=charts.GRID, linewidth=edge, **look)
            for span in row:
                if span.label and span.end - span.start >= LEAST * last:
                    axes.text((span.start + span.end) / 2, place, span.label, ha="center", va="center", fontsize=7)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set(xlabel=x_label, xlim=(0, last), ylim=(len(rows) - 0.4, -0.6))
        axes.grid(visible=False, axis="y")
        _legend(axes, names)

    return charts.figure(draw, height=0.9 + 0.34 * max(len(rows), 1))


def _look(span: Span) -> tuple[str, float]:
    return span.series, span.shade


def _legend(axes: Any, names: Sequence[str]) -> None:
    """Boxes without a shade, whatever there is of them."""
    for index, name in enumerate(names):
        axes.barh([0], [0], color=charts.colour(index), label=name)
    charts.legend(axes, names)
