"""Charts as inline SVG, drawn by matplotlib in colours that the page's style sheet decides (light or dark).

matplotlib knows no CSS variables, so the figures are drawn in stand-in colours that are replaced in the SVG text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

INK, GRID = "#010101", "#020202"
SERIES = tuple(f"#0{n}0a0b" for n in range(1, 9))
CSS_COLOURS = {INK: "currentColor", GRID: "var(--grid)"} | {c: f"var(--series-{n})" for n, c in enumerate(SERIES, 1)}
WIDTH = 9.0  # inches; the page scales the figure to its column
STYLE: Any = {  # rcParams; matplotlib's own type spells out every key there is
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the page's font
    "svg.hashsalt": "megavlm",  # the same figure gives the same bytes
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def lines(series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str, log_y: bool) -> str:
    """SVG of one line per series; a line of a single point shows as a dot."""

    def draw(axes: Any) -> None:
        for index, (name, points) in enumerate(series.items()):
            xs, ys = zip(*points, strict=True) if points else ((), ())
            axes.plot(xs, ys, color=_colour(index), label=name, marker="o" if len(points) == 1 else None)
        axes.set(xlabel=x_label, ylabel=y_label, yscale="log" if log_y else "linear")
        _legend(axes, list(series))

    return _figure(draw, height=3.1)


def bars(groups: Mapping[str, float | Mapping[str, float]], x_label: str, marks: Mapping[str, float]) -> str:
    """SVG of horizontal bars, the first label on top, each with its value at its end."""
    table = {label: dict(value) if isinstance(value, Mapping) else {"": value} for label, value in groups.items()}
    names = list(dict.fromkeys(name for row in table.values() for name in row))
    thickness = 0.8 / max(len(names), 1)

    def draw(axes: Any) -> None:
        for index, name in enumerate(names):
            places = [place + (index - (len(names) - 1) / 2) * thickness for place in range(len(table))]
            values = [row.get(name, float("nan")) for row in table.values()]
            drawn = axes.barh(places, values, height=thickness * 0.9, color=_colour(index), label=name)
            axes.bar_label(drawn, labels=[_number(value) for value in values], padding=3)
        for index, (name, value) in enumerate(marks.items(), len(names)):
            axes.axvline(value, color=_colour(index), linestyle="--", linewidth=1.4, label=name)
        axes.set_yticks(range(len(table)), list(table))
        axes.set(xlabel=x_label)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.12)
        _legend(axes, [*names, *marks])

    return _figure(draw, height=0.9 + 0.3 * max(len(table), 1) * max(1.0, 0.7 * len(names)))


def with_prefix(svg: str, prefix: str) -> str:
    """The SVG with `prefix` before every id and every reference to one, so that several fit into one page."""
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", svg)


def _figure(draw: Any, height: float) -> str:
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot, which keeps every figure in a global list

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure.add_subplot())
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub("|".join(CSS_COLOURS), lambda found: CSS_COLOURS[found[0]], svg)


def _legend(axes: Any, names: Sequence[str]) -> None:
    """A legend above the plot, where one is needed: it covers no data there."""
    names = [name for name in names if name]  # bars of one series have no name of their own
    if names and (len(names) > 1 or len(axes.lines) > 0):
        drawn = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        handles = [drawn[name] for name in names]  # matplotlib would put every line before every bar
        axes.legend(
            handles, names, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.3, handlelength=1.4
        )


def _colour(index: int) -> str:
    return SERIES[index % len(SERIES)]


def _number(value: float) -> str:
    return "" if value != value else f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
