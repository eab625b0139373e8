"""The report's chapter on evaluation: accuracies by question type and stage, and every gate in picture and words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .chance import best_constant_answers, chance_accuracy
from .gate import GateResult
from .predictions import Prediction, accuracy, accuracy_by_kind, read_predictions

if TYPE_CHECKING:
    from megavlm.platform.report import Report
    from megavlm.platform.runs import RunFolder

Table = dict[str, dict[str, list[Prediction]]]  # suite -> stage -> predictions

INTRO = (
    "Every answer is judged by exact match of what greedy decoding says. Chance is the best constant answer of each "
    "question type, chosen with the answers in hand."
)


def add_sections(run: RunFolder, report: Report) -> None:
    """Add what the run folder holds under predictions/ and gate/; does nothing when there is neither."""
    suites, gates = _suites(run.path("predictions")), _gates(run.path("gate"))
    if not suites and not gates:
        return
    report.section("Evaluation", INTRO)
    for suite, stages in suites.items():
        rows = accuracy_rows(stages)
        report.table(rows, list(rows[0]), title=f"Suite {suite}: accuracy in per cent")
        report.text(_unshown(stages))
    for stage, gate in gates.items():
        add_gate(stage, gate, report)


def accuracy_rows(stages: dict[str, list[Prediction]]) -> list[dict[str, str]]:
    """One row per question type and one for all: items, chance, then the accuracy after every stage."""
    everything = [(item.kind, item.expected) for items in stages.values() for item in items]
    first = next(iter(stages.values()))
    constants = best_constant_answers((item.kind, item.expected) for item in first)
    by_stage = {stage: accuracy_by_kind(items) for stage, items in stages.items()}
    rows = []
    for kind in dict.fromkeys(kind for kind, _ in everything):
        row = {"question": kind or "all", "items": str(sum(item.kind == kind for item in first))}
        row["chance"] = _percent(constants[kind][1]) if kind in constants else "-"
        rows.append(row | {name: _percent(of.get(kind)) for name, of in by_stage.items()})
    total = {"question": "all", "items": str(len(first)), "chance": _percent(_chance(first))}
    total |= {name: _percent(accuracy(items)) for name, items in stages.items()}
    return [*rows, total] if len(rows) > 1 else [total]


def add_gate(stage: str, gate: GateResult, report: Report) -> None:
    """The gate as a picture, the drop and both ends of its interval against the allowed drop, and in words."""
    name = f"{gate.confidence:.0%} interval"
    bars = {f"most ({name})": gate.drop_high, "observed": gate.drop, f"least ({name})": gate.drop_low}
    report.bar_chart(
        f"Gate of stage {stage}: loss of accuracy against its baseline, in points",
        {label: {"points lost": 100 * drop} for label, drop in bars.items()},
        x_label=f"points of accuracy lost, over {gate.items} paired items",
        marks={f"allowed: {100 * gate.max_drop:g}": 100 * gate.max_drop},
    )
    report.verdict(f"{gate.sentence()}.", {"pass": True, "fail": False, "undecided": None}[gate.verdict])


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
