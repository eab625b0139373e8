"""A comparison as a page: dots with their intervals, tables, and the items that changed sides. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megavlm.platform.report import Report
from megavlm.platform.report.dots import Dot, Dots

from .compare import EXAMPLES, Comparison, Difference
from .pairs import Pair

COLUMNS = ["model", "score", "difference", "from", "to", "lost", "gained", "change"]
ITEM = ["item", "kind", "expected", "reference said", "it said", "worth"]
LETTERS = 120  # of an answer
NOTE = (
    "A change is real where its interval leaves out 0. Of many such intervals some leave it out by chance: at 95%, one "
    "in twenty of those that nothing happened to."
)


def page(told: Comparison) -> Report:
    """The whole of it."""
    report = Report(f"{told.names[0]} compared", f"with {', '.join(told.names[1:])}")
    report.section("Differences", NOTE)
    for other in told.names[1:]:
        report.panels(f"{other} against {told.names[0]}", [_picture(other, told)])
    if told.averaged:
        title = f"Average of {len(told.averaged)} suites, in points: {', '.join(told.averaged)}"
        report.table(_rows(told.names, told.reference_mean, told.mean), COLUMNS, title)
    for name, suite in told.suites.items():
        report.section(f"Suite {name}", f"{suite.metric}, {suite.items} items.")
        report.table(_rows(told.names, suite.reference, suite.others), COLUMNS, "Scores and differences in points")
        if suite.missing:
            report.text(f"No predictions of: {', '.join(suite.missing)}.")
        for other, pairs in suite.pairs.items():
            _changed(report, other, pairs)
    return report


def _picture(other: str, told: Comparison) -> Dots:
    rows = {name: suite.others[other] for name, suite in told.suites.items() if other in suite.others}
    if len(rows) > 1 and told.averaged:
        rows["average"] = told.mean[other]
    dots = {name: Dot(100 * of.difference, 100 * of.low, 100 * of.high) for name, of in rows.items()}
    missing = [name for name, suite in told.suites.items() if other not in suite.others]
    note = f"Missing: {', '.join(missing)}." if missing else ""
    return Dots(
        "Difference by suite", dots, f"points better, {told.confidence:.0%} interval", {"no difference": 0.0}, note
    )


def _rows(names: Sequence[str], reference: float | None, others: dict[str, Difference]) -> list[list[object]]:
    rows: list[list[object]] = [[f"{names[0]} (reference)", _points(reference), *[None] * 6]]
    for name in names[1:]:
        of = others.get(name)
        told = [None] * 7 if of is None else [*_figures(of), of.lost, of.gained, of.change]
        rows.append([name, *told])
    return rows


def _figures(of: Difference) -> list[float | None]:
    return [_points(share) for share in (of.score, of.difference, of.low, of.high)]


def _points(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 2)


def _changed(report: Report, other: str, pairs: Sequence[Pair]) -> None:
    """A few examples each way, those that changed most first."""
    for title, sign in (("lost", 1), ("gained", -1)):
        moved = sorted(pairs, key=lambda pair: (-sign * (pair[0].value - pair[1].value), pair[0].id))
        shown = list(_examples(moved[:EXAMPLES], sign))
        if shown:
            report.table(shown, ITEM, f"{other}: items {title}")


def _examples(pairs: Sequence[Pair], sign: int) -> Iterator[list[str]]:
    for old, now in pairs:
        if sign * (old.value - now.value) > 0:
            said = [_short(old.answer or old.problem), _short(now.answer or now.problem)]
            yield [old.id, old.kind, _short(old.expected), *said, f"{old.value:.2g}, then {now.value:.2g}"]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LETTERS else f"{line[: LETTERS - 1]}…"
