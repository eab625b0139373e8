"""A study's table for people, in Markdown that a terminal shows too. Ours first, the published rows by themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from . import searched

THEIRS = (
    "Published figures, not ours: other data, another size, other questions. Compare the order of their rows with the "
    "order of ours, not the values."
)
COUNTS = ("samples", "tokens", "visual_tokens", "tokens_beside", "parameters", "steps", "seconds")
Grid = tuple[list[str], list[list[str]]]  # columns, rows


def markdown(table: dict[str, Any]) -> str:
    """The whole page."""
    return "\n".join(_page(table)) + "\n"


def _page(table: dict[str, Any]) -> Iterator[str]:
    yield from (f"# {table['study']}", "", table["question"], "", "## Ours", "")
    yield from lines(*ours(table))
    yield from ("", *(f"- {note}" for note in notes(table)))
    compared = differences(table)
    if compared:
        yield from ("", f"{compared_title(table)}:", "", *lines(*compared))
    if "search" in table:
        yield from ("", searched.heading(table["search"]) + ":", "", *lines(*searched.grid(table["search"])), "")
        yield from (f"- {told}" for told in searched.outcomes(table["search"]))
    if table["published"]:
        yield from ("", "## Theirs", "", THEIRS)
    for theirs in table["published"]:
        yield from ("", heading(theirs) + "." + (f" {theirs['note']}" if theirs["note"] else ""), "")
        yield from lines(*published(theirs))


def ours(table: dict[str, Any]) -> Grid:
    """Scores in per cent, then what each variant saw and cost."""
    scores = list(table["scores"])
    columns = ["variant", *scores, *(count.replace("_", " ") for count in COUNTS), "seeds"]
    rows = []
    for row in table["rows"]:
        name = row["variant"] if row["state"] == "finished" else f"{row['variant']} ({row['state']})"
        counts = ("–" if row[key] is None else f"{row[key]:,.0f}" for key in COUNTS)
        shown = (_cell(row["scores"].get(key), table["scores"][key]) for key in scores)
        rows.append([name, *shown, *counts, str(len(row["seeds"]))])
    return columns, rows


def differences(table: dict[str, Any]) -> Grid | None:
    """The scores that are compared with the reference, in points; None where none is."""
    found = {row["variant"]: _compared(row) for row in table["rows"] if _compared(row)}
    names = [key for key in table["scores"] if any(key in of for of in found.values())]
    several = {row["variant"]: [row["against"]] if len(_references(table)) > 1 else [] for row in table["rows"]}
    rows = [[variant, *several[variant], *(points(of.get(key)) for key in names)] for variant, of in found.items()]
    return (["variant", *["more than"] * (len(_references(table)) > 1), *names], rows) if rows else None


def compared_title(table: dict[str, Any]) -> str:
    """What the differences are to: one reference for all, or each row's own, which then stands beside it."""
    one = _references(table)
    return f"Points more than {f'`{one[0]}`' if len(one) == 1 else 'the variant named'}, item by item"


def _references(table: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["against"] for row in table["rows"] if _compared(row)))


def _compared(row: dict[str, Any]) -> dict[str, Any]:
    return {key: score["difference"] for key, score in row["scores"].items() if score.get("difference")}


def heading(theirs: dict[str, Any]) -> str:
    """A published table's title with its source."""
    return f"{theirs['title']} ({theirs['source']})"


def published(theirs: dict[str, Any]) -> Grid:
    """A published table, as it was printed."""
    rows = [[name, *("–" if cell is None else str(cell) for cell in cells)] for name, cells in theirs["rows"].items()]
    return ["", *theirs["columns"]], rows


def notes(table: dict[str, Any]) -> Iterator[str]:
    """What a reader has to know of the figures."""
    for name, about in table["scores"].items():
        if about["minus"]:
            yield f"{name}: points more than after stage {about['minus']}, in the same items, {about['items']} of them"
        elif about["items"]:
            chance = f"the best constant answers give {_percent(about['chance'])}"
            yield f"{name}: per cent of {about['items']} items answered exactly; {chance}"
    yield f"in brackets: the {table['confidence']:.0%} interval that so few items leave"
    if len(table["seeds"]) > 1:
        yield f"±: the standard deviation over {len(table['seeds'])} seeds"
    yield from (f"NOT EQUAL: {problem}" for problem in table["unequal"])
    yield from map(ranked, table["ranks"])
    if table["same_samples"] and table["finished"]:
        yield "all variants saw the very same samples"
    yield "samples and tokens are counted in the pack manifests, over all stages; seconds are those of training steps"
    yield "tokens: in the sequences; tokens beside: visual ones read through cross-attention, which are not among them"
    for row in table["rows"]:
        yield from (f"{row['variant']}, seed {seed}, failed: {why}" for seed, why in row["reasons"].items())
    if table["left_out"]:
        yield f"not trained here: {', '.join(table['left_out'])}"


def ranked(told: dict[str, Any]) -> str:
    """Whether two scores put the variants in the same order."""
    one, other = told["scores"]
    rho = "undefined, one of them being constant" if told["rho"] is None else f"{told['rho']:+.2f}"
    apart = told["alike"] + told["opposite"]
    pairs = f"of {apart} pairs that both tell apart, {told['alike']} rise together and {told['opposite']} do not"
    return f"{other} against {one}: Spearman's rank correlation over {told['variants']} variants is {rho}; {pairs}"


def _cell(score: dict[str, Any] | None, about: dict[str, Any]) -> str:
    return points(score) if about["minus"] else value(score)


def value(score: dict[str, Any] | None) -> str:
    """A score: `95.8 ± 0.6 (93.2 to 97.5)` in per cent, or a metric as it is."""
    if not score:
        return "–"
    if score["items"] is None:
        return f"{score['value']:.4g}" + (f" ± {score['spread']:.2g}" if score["spread"] is not None else "")
    return f"{_percent(score['value'])}{_spread(score)} ({_percent(score['low'])} to {_percent(score['high'])})"


def points(against: dict[str, Any] | None) -> str:
    """A difference in points, with its sign."""
    if not against:
        return "–"
    low, high = (f"{100 * against[key]:+.1f}" for key in ("low", "high"))
    return f"{100 * against['value']:+.1f}{_spread(against)} ({low} to {high})"


def lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table whose columns stand under each other."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [columns, *rows]]
    widths = [max(3, *(len(row[k]) for row in cells)) for k in range(len(columns))]
    for row in [cells[0], ["-" * width for width in widths], *cells[1:]]:
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _spread(score: dict[str, Any]) -> str:
    return f" ± {100 * score['spread']:.1f}" if score["spread"] is not None else ""
