"""Estimates with their intervals, one under the other, against levels: what differs, and by how much at least."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from . import charts

WIDTH = 6.4  # inches: alone in its row


class Dot(NamedTuple):
    """An estimate and both ends of its interval; `limit` is drawn as a tick of its own in that row."""

    value: float
    low: float
    high: float
    limit: float | None = None


@dataclasses.dataclass(frozen=True)
class Dots:
    """A panel: one row per entry of `dots`, the first on top; `marks` are vertical lines by name."""

    title: str
    dots: Mapping[str, Dot]
    x_label: str = ""
    marks: Mapping[str, float] = dataclasses.field(default_factory=dict)
    note: str = ""
    limit_name: str = "allowed"

    def svg(self) -> str:
        """A dot on a bar from the low to the high end."""

        def draw(axes: Any) -> None:
            for place, dot in enumerate(self.dots.values()):
                axes.plot([dot.low, dot.high], [place, place], color=charts.colour(0), linewidth=2.2)
                axes.plot([dot.value], [place], color=charts.colour(0), marker="o", markersize=6)
            for index, (name, value) in enumerate(self.marks.items(), 1):
                axes.axvline(value, color=charts.colour(index), linestyle="--", linewidth=1.4, label=name)
            limits = [(dot.limit, place) for place, dot in enumerate(self.dots.values()) if dot.limit is not None]
            if limits:
                xs, ys = zip(*limits, strict=True)
                colour = charts.colour(1 + len(self.marks))
                axes.scatter(xs, ys, color=colour, marker="|", s=160, linewidths=2.2, label=self.limit_name, zorder=3)
            axes.set_yticks(range(len(self.dots)), list(self.dots))
            axes.set(xlabel=self.x_label, ylim=(len(self.dots) - 0.4, -0.6))
            axes.grid(visible=False, axis="y")
            axes.margins(x=0.08)
            charts.legend(axes, [*self.marks, *([self.limit_name] if limits else [])])

        return charts.figure(draw, 0.9 + 0.3 * max(len(self.dots), 1), WIDTH)
