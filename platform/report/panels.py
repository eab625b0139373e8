"""Small charts that stand side by side: histograms with the limits that cut them, and densities of two measures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from . import charts

WIDTH, HEIGHT = 4.6, 2.5  # inches: two beside each other
MOST_OPAQUE = 0.95
LETTERS = 36  # of a legend in one line


class Panel(Protocol):
    """A chart with its heading and a line below it."""

    @property
    def title(self) -> str:
        """The heading."""

    @property
    def note(self) -> str:
        """What a reader should know: how many samples, what a limit cuts."""

    def svg(self) -> str:
        """The drawing."""


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Counts [bins] of each series over `edges` [bins + 1], the later ones in front; `marks` are limits by name."""

    title: str
    edges: Sequence[float]
    series: Mapping[str, Sequence[int]]
    x_label: str = ""
    marks: Mapping[str, float] = dataclasses.field(default_factory=dict)
    log_x: bool = False
    note: str = ""
    y_label: str = "samples"
    whole: bool = False  # the values are whole numbers

    def svg(self) -> str:
        """Filled steps; a limit outside the edges widens the axis, so that it is seen all the same."""

        def draw(axes: Any) -> None:
            for index, (name, counts) in enumerate(self.series.items()):
                colour = charts.colour(index)
                axes.stairs(counts, self.edges, color=colour, linewidth=1.3, label=name)
                axes.stairs(counts, self.edges, fill=True, color=colour, alpha=0.25 if index == 0 else 0.5, linewidth=0)
            for index, (name, value) in enumerate(self.marks.items()):
                axes.axvline(value, color=charts.colour(3 + index), linestyle="--", linewidth=1.5, label=name)
            axes.set(xlabel=self.x_label, ylabel=self.y_label)
            axes.grid(visible=False, axis="x")
            charts.scale(axes, self.log_x, log_y=False)
            if self.whole and axes.get_xscale() == "linear":
                axes.xaxis.get_major_locator().set_params(integer=True)
            _legend(axes, [*(self.series if len(self.series) > 1 else ()), *self.marks])

        return charts.figure(draw, HEIGHT, WIDTH)


@dataclasses.dataclass(frozen=True)
class Density:
    """Counts [y bins][x bins]: more samples, more colour. `lines` are limits by name, as (x, y) points."""

    title: str
    x_edges: Sequence[float]
    y_edges: Sequence[float]
    counts: Sequence[Sequence[int]]
    x_label: str = ""
    y_label: str = ""
    lines: Mapping[str, Sequence[tuple[float, float]]] = dataclasses.field(default_factory=dict)
    log: bool = False
    note: str = ""

    def svg(self) -> str:
        """Only cells that hold something are drawn. Shades follow the square root, so that rare ones show."""
        from matplotlib.collections import PolyCollection

        cells = [(x, y, n) for y, row in enumerate(self.counts) for x, n in enumerate(row) if n]
        most = max((n for _, _, n in cells), default=1)

        def draw(axes: Any) -> None:
            shades = [0.08 + (MOST_OPAQUE - 0.08) * math.sqrt(n / most) for _, _, n in cells]
            boxes = PolyCollection([self._box(x, y) for x, y, _ in cells], linewidths=0)
            # opacity and not a colour map: the colour is the style sheet's, which knows light from dark
            boxes.set(facecolor=charts.colour(0), alpha=shades or None)
            axes.add_collection(boxes)
            axes.set(xlim=(self.x_edges[0], self.x_edges[-1]), ylim=(self.y_edges[0], self.y_edges[-1]))
            for index, (name, points) in enumerate(self.lines.items()):
                xs, ys = zip(*points, strict=True)
                axes.plot(xs, ys, color=charts.colour(3 + index), linestyle="--", linewidth=1.5, label=name)
            axes.set(xlabel=self.x_label, ylabel=self.y_label)
            charts.scale(axes, self.log, self.log)
            _legend(axes, list(self.lines))

        return charts.figure(draw, HEIGHT + 0.5, WIDTH)

    def _box(self, x: int, y: int) -> list[tuple[float, float]]:
        left, right, low, high = self.x_edges[x], self.x_edges[x + 1], self.y_edges[y], self.y_edges[y + 1]
        return [(left, low), (right, low), (right, high), (left, high)]


def _legend(axes: Any, names: Sequence[str]) -> None:
    """In one line where the names fit into a panel."""
    charts.legend(axes, names, columns=len(names) if sum(map(len, names)) <= LETTERS else 2)
