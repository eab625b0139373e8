"""The report's chapter on evaluation: accuracies by question type and stage, and every gate in picture and words."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megavlm.platform.report.dots import Dot, Dots

from .chance import best_constant_answers, chance_accuracy
from .gate import Drop, GateResult
from .predictions import Prediction, accuracy, accuracy_by_kind, read_about, read_predictions

if TYPE_CHECKING:
    from megavlm.platform.report import Report
    from megavlm.platform.runs import RunFolder

Table = dict[str, dict[str, list[Prediction]]]  # suite -> stage -> predictions

INTRO = (
    "A held-out set is judged by exact match of what greedy decoding says, a benchmark by its own metric; each table "
    "names it. Chance is the best constant answer of each question type, chosen with the answers in hand."
)
GATES_INTRO = (
    "How many points each suite lost against the baseline, item by item, with the interval that its number of items "
    "leaves. A gate passes where whole intervals are left of what is allowed, and fails where one is right of it."
)
GATE_COLUMNS = ["suite", "items", "before", "after", "lost", "gained", "drop", "from", "to", "allowed", "verdict"]


def add_sections(run: RunFolder, report: Report) -> None:
    """Add what the run folder holds under predictions/ and gate/; does nothing when there is neither."""
    suites, gates = _suites(run.path("predictions")), _gates(run.path("gate"))
    if not suites and not gates:
        return
    report.section("Evaluation", INTRO)
    for suite, stages in suites.items():
        rows = accuracy_rows(stages)
        report.table(rows, list(rows[0]), title=f"Suite {suite}: {_metric(run, suite)} in per cent")
        report.text(_unshown(stages))
    if gates:
        report.section("Gates", GATES_INTRO)
    for stage, gate in gates.items():
        add_gate(stage, gate, report)


def accuracy_rows(stages: dict[str, list[Prediction]]) -> list[dict[str, str]]:
    """One row per question type and one for all: items, chance, then the accuracy after every stage."""
    everything = [(item.kind, item.expected) for items in stages.values() for item in items]
    first = next(iter(stages.values()))
    constants = best_constant_answers((item.kind, item.expected) for item in first)
    known = not any(item.score is not None for item in first)  # of shares, constant answers tell nothing
    by_stage = {stage: accuracy_by_kind(items) for stage, items in stages.items()}
    rows = []
    for kind in dict.fromkeys(kind for kind, _ in everything):
        row = {"question": kind or "all", "items": str(sum(item.kind == kind for item in first))}
        row["chance"] = _percent(constants[kind][1]) if known and kind in constants else "-"
        rows.append(row | {name: _percent(of.get(kind)) for name, of in by_stage.items()})
    total = {"question": "all", "items": str(len(first)), "chance": _percent(_chance(first) if known else None)}
    total |= {name: _percent(accuracy(items)) for name, items in stages.items()}
    return [*rows, total] if len(rows) > 1 else [total]


def add_gate(stage: str, gate: GateResult, report: Report) -> None:
    """The verdict in words; every suite's drop, and their average's, in picture and table, against what is allowed."""
    report.verdict(f"{gate.sentence()}.", {"pass": True, "fail": False, "undecided": None}[gate.verdict])
    rows = _gate_rows(gate)
    dots = {name: _dot(drop) for name, drop in rows.items()}
    marks = {"no change": 0.0}
    picture = Dots(f"Gate of stage {stage}", dots, f"points lost, {gate.confidence:.0%} interval", marks)
    report.panels("Loss against the baseline", [picture])
    if len(rows) > 1:
        report.table([_gate_row(name, drop) for name, drop in rows.items()], GATE_COLUMNS, "In points")


def _gate_rows(gate: GateResult) -> dict[str, Drop]:
    """Every suite and the average; one suite, or what was written before gates had several, as itself."""
    if len(gate.suites) > 1 and gate.mean:
        return gate.suites | {"average": gate.mean}
    fields: dict[str, Any] = {field.name: getattr(gate, field.name, None) for field in dataclasses.fields(Drop)}
    return {next(iter(gate.suites), "suite"): Drop(**(fields | {"low_shared": gate.drop_low}))}


def _dot(drop: Drop) -> Dot:
    limit = None if drop.max_drop is None else 100 * drop.max_drop
    return Dot(100 * drop.drop, 100 * drop.drop_low, 100 * drop.drop_high, limit)


def _gate_row(name: str, drop: Drop) -> list[Any]:
    shares = (drop.drop, drop.drop_low, drop.drop_high, drop.max_drop)
    points = [None if share is None else round(100 * share, 2) for share in shares]
    scores = [_percent(drop.accuracy_before), _percent(drop.accuracy_after)]
    return [name, drop.items, *scores, drop.lost, drop.gained, *points, drop.verdict]


def _metric(run: RunFolder, suite: str) -> str:
    """What a suite's column of figures is; several names where its stages were asked differently."""
    found = sorted(run.path("predictions").glob(f"*/{suite}.jsonl"))
    return ", ".join(dict.fromkeys(read_about(path).metric for path in found)) or "accuracy"


def _unshown(stages: dict[str, list[Prediction]]) -> str:
    problems = {item.id: item.problem for items in stages.values() for item in items if item.problem}
    if not problems:
        return "Every item could be shown to the model."
    listed = ", ".join(f"{name} ({reason})" for name, reason in sorted(problems.items())[:20])
    return f"{len(problems)} item(s) could not be shown and count as wrong: {listed}."


def _suites(folder: Path) -> Table:
    """Stages in the order they were evaluated; the blind control is a suite's own column."""
    table: Table = {}
    for path in sorted(folder.glob("*/*.jsonl"), key=lambda p: (p.stat().st_mtime_ns, p)):
        suite, _, variant = path.stem.partition(".")
        column = f"{path.parent.name} ({variant})" if variant else path.parent.name
        items = read_predictions(path)
        if items:
            table.setdefault(suite, {})[column] = items
    return table


def _gates(folder: Path) -> dict[str, GateResult]:
    gates: dict[str, GateResult] = {}
    for path in sorted(folder.glob("*.json")):
        told: dict[str, Any] = json.loads(path.read_text())
        gates[path.stem] = GateResult.from_json(told)
    return gates


def _chance(items: list[Prediction]) -> float:
    return chance_accuracy((item.kind, item.expected) for item in items)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
