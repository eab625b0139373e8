"""Charts as inline SVG, drawn by matplotlib in colours that the page's style sheet decides (light or dark).

matplotlib knows no CSS variables, so the figures are drawn in stand-in colours that are replaced in the SVG text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

INK, GRID = "#010101", "#020202"
SERIES = tuple(f"#0{n}0a0b" for n in range(1, 9))
CSS_COLOURS = {INK: "currentColor", GRID: "var(--grid)"} | {c: f"var(--series-{n})" for n, c in enumerate(SERIES, 1)}
WIDTH = 9.0  # inches; the page scales the figure to its column
STYLE: Any = {  # rcParams; matplotlib's own type spells out every key there is
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the page's font
    "svg.hashsalt": "megavlm",  # the same figure gives the same bytes
    "font.size": 9.5,
    "text.parse_math": False,  # names may hold dollar signs
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


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str,
    y_label: str,
    log_y: bool,
    log_x: bool = False,
    marks: Mapping[str, float] | None = None,
) -> str:
    """SVG of one line per series, `marks` being levels by name; a line of a single point shows as a dot."""

    def draw(axes: Any) -> None:
        for index, (name, points) in enumerate(series.items()):
            xs, ys = zip(*points, strict=True) if points else ((), ())
            axes.plot(xs, ys, color=colour(index), label=name, marker="o" if len(points) == 1 else None)
        for index, (name, value) in enumerate((marks or {}).items(), len(series)):
            axes.axhline(value, color=colour(index), linestyle="--", linewidth=1.4, label=name)
        axes.set(xlabel=x_label, ylabel=y_label)
        scale(axes, log_x, log_y)
        legend(axes, [*series, *(marks or {})])

    return figure(draw, height=3.1)


def bars(groups: Mapping[str, float | Mapping[str, float]], x_label: str, marks: Mapping[str, float]) -> str:
    """SVG of horizontal bars, the first label on top, each with its value at its end."""
    table = {label: dict(value) if isinstance(value, Mapping) else {"": value} for label, value in groups.items()}
    names = list(dict.fromkeys(name for row in table.values() for name in row))
    thickness = 0.8 / max(len(names), 1)

    def draw(axes: Any) -> None:
        for index, name in enumerate(names):
            places = [place + (index - (len(names) - 1) / 2) * thickness for place in range(len(table))]
            values = [row.get(name, float("nan")) for row in table.values()]
            drawn = axes.barh(places, values, height=thickness * 0.9, color=colour(index), label=name)
            axes.bar_label(drawn, labels=[_number(value) for value in values], padding=3)
        for index, (name, value) in enumerate(marks.items(), len(names)):
            axes.axvline(value, color=colour(index), linestyle="--", linewidth=1.4, label=name)
        axes.set_yticks(range(len(table)), list(table))
        axes.set(xlabel=x_label)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.12)
        legend(axes, [*names, *marks])

    return figure(draw, height=0.9 + 0.3 * max(len(table), 1) * max(1.0, 0.7 * len(names)))


def stacked(table: Mapping[str, Mapping[str, float]], x_label: str, marks: Mapping[str, float] | None = None) -> str:
    """SVG of horizontal bars made of parts; at its end stand both parts of a bar, or the sum of more.

    `marks`: reference lines by name.
    """
    names = list(dict.fromkeys(name for row in table.values() for name in row))

    def draw(axes: Any) -> None:
        ends = [0.0] * len(table)
        for index, name in enumerate(names):
            values = [row.get(name, 0) for row in table.values()]
            drawn = axes.barh(range(len(table)), values, left=ends, height=0.72, color=colour(index), label=name)
            ends = [end + value for end, value in zip(ends, values, strict=True)]
        if names:
            axes.bar_label(drawn, labels=[_parts(row, len(names)) for row in table.values()], padding=3)
        for index, (name, value) in enumerate((marks or {}).items(), len(names)):
            axes.axvline(value, color=colour(index), linestyle="--", linewidth=1.4, label=name)
        axes.set_yticks(range(len(table)), list(table))
        axes.set(xlabel=x_label)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.2)
        legend(axes, [*names, *(marks or {})])

    return figure(draw, height=0.9 + 0.3 * max(len(table), 1))


def _parts(row: Mapping[str, float], most: int) -> str:
    if most > 2:
        return _number(sum(row.values()))
    return ", ".join(f"{_number(value)} {name}" for name, value in row.items() if value)


def with_prefix(svg: str, prefix: str) -> str:
    """The SVG with `prefix` before every id and every reference to one, so that several fit into one page."""
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", svg)


def figure(draw: Callable[[Any], None], height: float, width: float = WIDTH) -> str:
    """SVG of what `draw` puts into matplotlib axes; sizes in inches."""
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot, which keeps every figure in a global list

    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(width, height), layout="constrained")
        draw(drawn.add_subplot())
        out = io.StringIO()
        drawn.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub("|".join(CSS_COLOURS), lambda found: CSS_COLOURS[found[0]], svg)


def scale(axes: Any, log_x: bool, log_y: bool) -> None:
    """Logarithmic axes, labelled with plain numbers: 1,000 rather than 10^3; linear ones where they span too little."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for wanted, axis in ((log_x, axes.xaxis), (log_y, axes.yaxis)):
        low, high = axis.get_view_interval()
        if wanted and not 0 < high <= 2 * low:
            getattr(axes, f"set_{axis.axis_name}scale")("log")
            low, high = axis.get_view_interval()
            # on less than two decades, the decades alone would leave the axis without numbers
            subs = (1.0,) if high > 100 * low else (1.0, 2.0, 5.0) if high > 5 * low else tuple(range(1, 10))
            axis.set_major_locator(LogLocator(subs=subs, numticks=9))
            axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
            axis.set_minor_formatter(NullFormatter())


def legend(axes: Any, names: Sequence[str], columns: int = 4) -> None:
    """A legend above the plot, where one is needed: it covers no data there."""
    names = [name for name in names if name]  # bars of one series have no name of their own
    if names and (len(names) > 1 or len(axes.lines) > 0):
        drawn = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        handles = [drawn[name] for name in names]  # matplotlib would put every line before every bar
        # of the figure and not of the axes, which long labels make too narrow for it
        axes.figure.legend(handles, names, loc="outside upper left", ncols=columns, borderaxespad=0.3, handlelength=1.4)


def colour(index: int) -> str:
    """The stand-in colour of series number `index`."""
    return SERIES[index % len(SERIES)]


def _number(value: float) -> str:
    return "" if value != value else f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def short(value: float) -> str:
    """A number for an axis: 0.05, 800, 2,000, 12k, 3M."""
    for least, unit, sign in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / unit:g}{sign}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"
