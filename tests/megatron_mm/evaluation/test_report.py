"""The report's chapter on evaluation, from files of a run folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from megavlm.megatron_mm.evaluation.gate import gate_of, paired_gate
from megavlm.megatron_mm.evaluation.predictions import About, Prediction, write_predictions
from megavlm.megatron_mm.evaluation.report import accuracy_rows, add_sections
from megavlm.platform.report import Report
from megavlm.platform.runs import RunFolder


def items(right: int, total: int) -> list[Prediction]:
    kinds = ["count", "colour"]
    return [
        Prediction(f"i{i}", kinds[i % 2], i < right, "x", str(i % 4), "truncated" if i == total - 1 else "")
        for i in range(total)
    ]


def test_rows_hold_accuracies_and_chance_by_kind() -> None:
    rows = accuracy_rows({"before": items(8, 8), "after": items(4, 8)})
    assert [row["question"] for row in rows] == ["count", "colour", "all"]
    assert rows[-1] == {"question": "all", "items": "8", "chance": "50.0", "before": "100.0", "after": "50.0"}


def test_the_chapter_tells_accuracies_problems_and_the_verdict(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {"name": "r"}, {}, ["megavlm"])
    before, after = items(40, 40), items(10, 40)
    write_predictions(run.path("predictions", "language", "text.jsonl"), before)
    write_predictions(run.path("predictions", "sft", "text.jsonl"), after)
    gate = paired_gate(before, after, max_drop=0.02)
    run.path("gate").mkdir()
    run.path("gate", "sft.json").write_text(json.dumps(gate.to_json()))
    report = Report("r")
    add_sections(run, report)
    page = report.html()
    for part in ("language", "sft", "25.0", "i39 (truncated)", "Gate of stage sft", "failed: the drop is at least"):
        assert part in page


def test_nothing_evaluated_adds_nothing(tmp_path: Path) -> None:
    report = Report("r")
    add_sections(RunFolder.create(tmp_path / "run", {"name": "r"}, {}, ["megavlm"]), report)
    assert [section.title for section in report.sections] == [""]


def test_a_gate_over_suites_shows_each_of_them_and_the_average(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {"name": "r"}, {}, ["megavlm"])
    pairs = {"mmlu": (items(40, 40), items(39, 40)), "gsm8k": (items(40, 40), items(5, 40))}
    gate = gate_of(pairs, max_drop=0.02, max_drop_each=0.05)
    run.path("gate").mkdir()
    run.path("gate", "held.json").write_text(json.dumps({"stage": "sft"} | gate.to_json()))
    report = Report("r")
    add_sections(run, report)
    page = report.html()
    for part in ("Gate of stage held", "gsm8k drops by at least", ">average<", ">mmlu<", "87.5", "allowed"):
        assert part in page
    assert page.count(">fail<") == 2  # gsm8k and the average


def test_a_metric_with_shares_is_called_by_its_name_and_has_no_chance(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {"name": "r"}, {}, ["megavlm"])
    scored = [dataclasses.replace(item, score=0.5) for item in items(4, 8)]
    write_predictions(run.path("predictions", "sft", "docvqa.jsonl"), scored, About("docvqa", metric="ANLS"))
    report = Report("r")
    add_sections(run, report)
    assert "Suite docvqa: ANLS in per cent" in report.html()
    rows = accuracy_rows({"sft": scored})
    assert {row["chance"] for row in rows} == {"-"} and rows[-1]["sft"] == "50.0"
