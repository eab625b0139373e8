"""Text: what each set gave and lost, how long conversations are, and leaked benchmark items with their words marked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from megavlm.platform.report import Case, Report

from ..distributions import whole_numbers
from ..text.source import TextSets
from .distributions import measured
from .measures import Measure, Reading, numbers
from .pictures import Pictures
from .samples import examples
from .view import View
from .words import around, marked

INGEST, DECONTAMINATE = "text_ingest", "text_decontaminate"
LEAKS_SHOWN = 8
LENGTHS = Reading(
    INGEST,
    ("key", "keep", "characters", "turns"),
    lambda table: {name: numbers(table[name]) for name in ("characters", "turns")},
    (
        Measure("characters", "Characters of a conversation", "characters", whole_numbers(10_000_000, 6), log=True),
        Measure("turns", "Turns of a conversation", "turns", whole_numbers(1_000, 12), log=True),
    ),
)


def add_text(view: View, pictures: Pictures, report: Report) -> None:
    """Sets, lengths and leaks of a run over texts."""
    source = view.run.config.source
    if not isinstance(source, TextSets) or not view.has(INGEST):
        return
    report.section("Text sets", f"{len(source.sets)} sets. {view.scope(INGEST)}".strip())
    _add_sets(view, source, report)
    report.panels("Lengths", [tally.chart() for tally in measured(view, LENGTHS, {}) if tally.before.total])
    if view.has(DECONTAMINATE):
        _add_leaks(view, report)


def _add_sets(view: View, source: TextSets, report: Report) -> None:
    """What became of each set's rows."""
    fates = count_by_set(view, source)
    report.stacked_bars("Rows of each set, kept and dropped by stage", fates["stage"], "rows")
    reasons = sorted({reason for row in fates["reason"].values() for reason in row} - {"kept"})
    rows = [{"set": name, "rows": sum(row.values()), **row} for name, row in fates["reason"].items()]
    report.table(rows, ["set", "rows", "kept", *reasons], title="Rows of each set, by reason")
    told = [{"set": name, "format": source.sets[name], **source.about_set(name).model_dump()} for name in source.sets]
    report.table(told, ["set", "format", "where", "licence"], title="Where each set is from")


def count_by_set(view: View, source: TextSets) -> dict[str, dict[str, Counter[str]]]:
    """Set -> rows "kept" and dropped, once by "stage" and once by "reason", from the shards that are measured."""
    set_of = {shard.name: source.set_of(shard) for shard in view.run.shards}
    found = {by: {name: Counter[str](kept=0) for name in source.sets} for by in ("stage", "reason")}
    for shard, table in view.tables(INGEST, ["keep"]):
        left = len(table)
        for judge in view.stages:
            verdicts = view.table(judge.name, shard, ["reason"]) if judge.judges and view.has(judge.name) else None
            gone = [] if verdicts is None else [reason for reason in verdicts["reason"].to_pylist() if reason]
            found["reason"][set_of[shard]].update(gone)
            found["stage"][set_of[shard]].update({f"dropped by {judge.name}": len(gone)} if gone else {})
            left -= len(gone)
        for by in found.values():
            by[set_of[shard]]["kept"] += left
    return found


def _add_leaks(view: View, report: Report) -> None:
    columns = ["benchmark", "item", "ngram"]
    rows = examples(view, DECONTAMINATE, LEAKS_SHOWN, columns).get("benchmark_leak", [])
    options: Any = view.stages[DECONTAMINATE]
    count = sum(view.line(DECONTAMINATE)["dropped"].values())
    report.section(
        "Benchmark leaks",
        f"{count:,} samples share {options.n} words in a row with an item of {', '.join(options.benchmarks)}"
        " (fewer with shorter items). The words found are marked.",
    )
    texts = _conversations(view, rows)
    report.cases("Drawn at random", [_case(row, texts.get(row["key"], [])) for row in rows])


def _conversations(view: View, rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, str]]]:
    """Key -> messages, as decontamination saw them."""
    from ..text.stages.conversations import conversations

    wanted = {row["key"] for row in rows}
    found = {}
    for shard in dict.fromkeys(row["shard"] for row in rows):
        for sample in conversations(view.run, DECONTAMINATE, shard):
            if sample["key"] in wanted:
                found[sample["key"]] = sample["messages"]
    return found


def _case(row: dict[str, Any], messages: Sequence[dict[str, str]]) -> Case:
    """The message that holds the words; the others say nothing about the leak."""
    pieces = ((message["role"], marked(message["content"], row["ngram"])) for message in messages)
    told = next(((role, around(runs)) for role, runs in pieces if any(mark for _, mark in runs)), None)
    text = told or ("words", [(row["ngram"], True)])
    return Case([], [("sample", row["key"]), ("item", f"{row['benchmark']}, number {row['item']}"), text])
