"""Distributions: what the samples are like before and after, with the limits that cut them drawn in."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megavlm.platform.report import Density, Report
from megavlm.platform.report import Histogram as Chart

from ..distributions import Histogram, coarser, octaves
from ..filters.scores import Score
from .limits import Limit, limits, rules
from .measures import CAPTIONS, LEAKS, NEW_CAPTIONS, PICTURES, Measure, Reading, cosines, scores
from .pictures import Pictures
from .view import View, share

BINS_SHOWN = 60
SIDES = octaves(0, 17, 4)  # px, bins of the two-dimensional one
AFTER_ALL = "kept at the end"


@dataclasses.dataclass
class Tally:
    """What is counted of one measure: all samples, those that stayed, and those beyond each limit."""

    measure: Measure
    limits: Sequence[Limit]
    after_name: str | None  # None: nobody has decided yet

    def __post_init__(self) -> None:
        self.before, self.after = Histogram(self.measure.edges), Histogram(self.measure.edges)
        self.beyond = [0] * len(self.limits)

    def add(self, values: np.ndarray, kept: np.ndarray) -> None:
        """float64 [n] and bool [n]."""
        self.before.add(values)
        self.after.add(values[kept])
        self.beyond = [count + limit.beyond(values) for count, limit in zip(self.beyond, self.limits, strict=True)]

    def chart(self) -> Chart:
        """As a panel of the report."""
        series = {"all": self.before.counts} | ({self.after_name: self.after.counts} if self.after_name else {})
        edges, rows = coarser(self.measure.edges, np.stack(list(series.values())), BINS_SHOWN)
        counted = dict(zip(series, rows.tolist(), strict=True))
        marks = {limit.name: limit.value for limit in self.limits}
        unit, log = self.measure.unit, self.measure.log
        return Chart(
            self.measure.title, edges.tolist(), counted, unit, marks, log, self.note(), whole=self.measure.whole
        )

    def note(self) -> str:
        """Numbers to the picture."""
        told, total = [f"{self.before.total:,} samples"], self.before.total
        for name, one in (("median", self.before), (f"of those {self.after_name}", self.after)):
            if one.total and (one is self.before or self.after_name):
                low, middle, high = (self.measure.told(one.quantile(part)) for part in (0.05, 0.5, 0.95))
                told.append(f"{name} {middle} (5 to 95 %: {low} to {high})")
        beyond = zip(self.limits, self.beyond, strict=True)
        told += [f"{limit.side} {limit.value:g}: {count:,} ({share(count, total)})" for limit, count in beyond]
        told += [f"{self.before.missing:,} without a value"] if self.before.missing else []
        return "; ".join(told) + "."


def readings(view: View) -> list[Reading]:
    """What there is to measure in this run."""
    found = [PICTURES, CAPTIONS, NEW_CAPTIONS, LEAKS, cosines("select" if view.has("select") else "assign")]
    own = [rule for rule in rules(view.stages) if isinstance(rule, Score)]
    return [reading for reading in [*found, scores(own)] if view.has(reading.stage)]


def add_distributions(view: View, pictures: Pictures, report: Report) -> None:
    """Histograms of everything that the sidecars of images know."""
    if not (found := readings(view)):
        return
    about = "Every measured sample, and in front those that stayed; dashed lines are the recipe's limits."
    report.section("Distributions", " ".join([about, view.scope(found[0].stage)]).strip())
    cut = limits(view.stages)
    panels: list[Chart | Density] = [sides(view, cut)] if view.has("filter") else []
    for reading in found:
        tallies = measured(view, reading, cut)
        panels += [tally.chart() for tally in tallies if tally.before.total]
    report.panels("", panels)


def measured(view: View, reading: Reading, cut: dict[str, list[Limit]]) -> list[Tally]:
    """A reading's measures, added up shard by shard."""
    judge = reading.judge or view.judge
    after = None if judge is None else f"kept by {judge}" if reading.judge else AFTER_ALL
    tallies = [Tally(measure, cut.get(measure.name, []), after) for measure in reading.measures]
    for number, (shard, table) in enumerate(view.tables(reading.stage, reading.columns)):
        if reading.shards is not None and number >= reading.shards:
            break
        values, kept = reading.derive(table), stayed(view, judge, shard, table)
        for tally in tallies:
            tally.add(values[tally.measure.name], kept)
    return tallies


def stayed(view: View, judge: str | None, shard: str, table: pa.Table) -> np.ndarray:
    """Which rows of a sidecar are samples that `judge` kept, bool [n]; nobody where its own sidecar is not there."""
    verdicts = None if judge is None else view.table(judge, shard, ["key", "keep"])
    if verdicts is None:
        return np.zeros(len(table), bool)
    kept = verdicts.filter(verdicts["keep"])["key"].combine_chunks()
    found = np.asarray(pc.is_in(table["key"], value_set=kept).to_numpy(zero_copy_only=False), bool)
    if "keep" in table.column_names:  # a rejected member may carry a kept sample's key
        found &= np.asarray(table["keep"].to_numpy(zero_copy_only=False), bool)
    return found


def sides(view: View, cut: dict[str, list[Limit]]) -> Density:
    """Width against height."""
    counts = np.zeros((len(SIDES) - 1, len(SIDES) - 1), np.int64)
    for _, table in view.tables("filter", ["width", "height"]):
        known = table.drop_null()
        counts += np.histogram2d(known["height"].to_numpy(), known["width"].to_numpy(), (SIDES, SIDES))[0].astype(int)
    rows, columns = (np.flatnonzero(counts.sum(axis=axis)) for axis in (1, 0))
    first, last = (min(rows[0], columns[0]), max(rows[-1], columns[-1]) + 1) if len(rows) else (0, 1)
    edges = SIDES[first : last + 1]
    note = f"{int(counts.sum()):,} images; the fullest cell holds {int(counts.max()):,}."
    shown = counts[first:last, first:last].tolist()
    lines = _cuts(cut, float(edges[0]), float(edges[-1]))
    side = edges.tolist()
    return Density("Width and height", side, side, shown, "width, px", "height, px", lines, log=True, note=note)


def _cuts(cut: dict[str, list[Limit]], low: float, high: float) -> dict[str, list[tuple[float, float]]]:
    """The limits on sides and aspect as lines between `low` and `high` px."""
    lines = {}
    for limit in cut.get("short_side", []):
        lines[f"shorter side {limit.value:g}"] = [(limit.value, high), (limit.value, limit.value), (high, limit.value)]
    for limit in cut.get("aspect", []):
        gap = (float("nan"), float("nan"))
        wide = [(low * limit.value, low), (high, high / limit.value)]
        lines[f"aspect {limit.value:g}"] = [*wide, gap, *((y, x) for x, y in wide)]
    return lines
