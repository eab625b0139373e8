"""A study's files: table.json, table.md, and report.html with a chart. Loads no torch."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from megavlm.platform.runs import RunFolder
from megavlm.platform.storage import write_atomic

from . import searched, show

if TYPE_CHECKING:
    from megavlm.platform.report import Report

TABLE, PAGE = "table.json", "table.md"


def write_table(folder: RunFolder, table: dict[str, Any]) -> dict[str, str]:
    """Write all three into the study's folder; returns their paths."""
    from megavlm.platform.report import Report

    write_atomic(folder.path(TABLE), json.dumps(table, indent=2, allow_nan=False).encode())
    write_atomic(folder.path(PAGE), show.markdown(table).encode())
    report = Report(table["study"], "MegaVLM study")
    add_table(table, report)
    path = report.write(folder.path("report.html"))
    return {"table": str(folder.path(TABLE)), "markdown": str(folder.path(PAGE)), "report": str(path)}


def add_sections(run: RunFolder, report: Report) -> None:
    """The study's chapters, for `megavlm report`; does nothing for a run that is no study."""
    path = run.path(TABLE)
    if path.exists():
        add_table(json.loads(path.read_text()), report)


def add_table(table: dict[str, Any], report: Report) -> None:
    """Our rows with a chart, what is wrong with them, each training, and then, by themselves, the published rows."""
    report.section("Ours", table["question"])
    for problem in table["unequal"]:
        report.verdict(f"Not equal: {problem}.", passed=False)
    shares = [name for name, about in table["scores"].items() if not about["minus"]]
    bars = {name: found for name in shares if (found := _bars(table, name))}
    columns, rows = show.ours(table)
    report.table(rows, columns, title="Scores, and what each variant saw")
    for name, found in bars.items():
        marks = {"chance": 100 * table["scores"][name]["chance"]}
        report.bar_chart(f"{name}: per cent of items answered exactly", found, "per cent", marks)
    if compared := show.differences(table):
        columns, rows = compared
        report.table(rows, columns, title=show.compared_title(table).replace("`", ""))
    report.text("\n\n".join(f"{note}." for note in show.notes(table)))
    if "search" in table:
        add_search(table["search"], report)
    runs = [_run_row(row["variant"], run) for row in table["rows"] for run in row["runs"]]
    report.table(runs, list(runs[0]), title="Trainings")
    if table["published"]:
        report.section("Theirs", show.THEIRS)
    for theirs in table["published"]:
        columns, rows = show.published(theirs)
        report.table(rows, columns, title=show.heading(theirs))
        if theirs["note"]:
            report.text(theirs["note"])


def add_search(found: dict[str, Any], report: Report) -> None:
    """The rounds: how good the best of each was, and everything that was tried."""
    columns, rows = searched.grid(found)
    if drawn := searched.curves(found):
        unit = "per cent" if found["percent"] else ""
        report.line_chart("Best score by round", drawn, "round", unit)
    report.table(rows, columns, title=searched.heading(found))
    report.text("\n\n".join(f"{told}." for told in searched.outcomes(found)))


def _bars(table: dict[str, Any], name: str) -> dict[str, dict[str, float]]:
    """Each variant's share with both ends of its interval, in per cent; empty for what has no items."""
    scores = {row["variant"]: row["scores"].get(name) for row in table["rows"]}
    ends = {"least": "low", "measured": "value", "most": "high"}
    return {
        variant: {label: 100 * score[key] for label, key in ends.items()}
        for variant, score in scores.items()
        if score and score["items"]
    }


def _run_row(variant: str, run: dict[str, Any]) -> dict[str, Any]:
    told = {"variant": variant, **{key: run[key] for key in ("seed", "state", "run")}}
    return told | {"command": shlex.join(run["command"])}
