"""A gate stage in a whole run: it asks both sides what they have not answered, a benchmark among it, and judges."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megavlm.megatron_mm.evaluation.benchmarks.present import snapshot
from megavlm.megatron_mm.evaluation.benchmarks.table import find_benchmark
from megavlm.megatron_mm.evaluation.predictions import read_about, read_predictions
from megavlm.platform.cli import main

ANSWERS = ["12", "Yes", "2009"]


def megavlm(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megavlm.platform.cli", *words]
    env = os.environ | {"OMP_NUM_THREADS": "1", "MEGAVLM_QUIET": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=280)


@pytest.mark.multiprocess
@pytest.mark.timeout(300)
def test_it_answers_a_benchmark_for_both_sides_and_judges_the_average(
    recipe: Path, parquet: Callable[..., Path], shot: Callable[[str], Any], tmp_path: Path, capsys: Any
) -> None:
    benchmark = find_benchmark("chartqa")
    rows = [
        {"type": "human_test", "question": f"Question {k}?", "answer": answer, "image": shot(answer)}
        for k, answer in enumerate(ANSWERS)
    ]
    parquet(snapshot(benchmark, tmp_path), "data/test-00000-of-00001.parquet", rows)
    run = tmp_path / "run"
    small = ["stages.language.steps=2", "stages.sft.steps=2", f"data.sets.benchmarks={tmp_path}"]
    limits = "gate: {suites: [text, chartqa], baseline: language, max_drop: 0.9, max_drop_each: 0.99}"
    gate = f"stages.gate={{evaluate: {{chartqa: benchmarks}}, {limits}, protocol: llava}}"
    done = megavlm("train", str(recipe), *small, gate, "--out", str(run), "--json")
    told = json.loads(done.stdout)
    assert told["finished"] and told["exit_code"] == done.returncode, done.stderr
    judged = json.loads((run / "gate" / "gate.json").read_text())
    assert set(judged["suites"]) == {"text", "chartqa"} and judged["verdict"] == told["stages"]["gate"]["gate"]
    for stage in ("language", "sft"):
        answers = read_predictions(run / "predictions" / stage / "chartqa.jsonl")
        assert [item.expected for item in answers] == ANSWERS and not any(item.problem for item in answers)
        about = read_about(run / "predictions" / stage / "chartqa.jsonl")
        assert about.protocol == "llava" and about.task.startswith("lmms-eval ") and about.engine == "megatron"
    # what has been answered is used, and not made anew: no ranks are started
    words = ["eval", str(run), "--stage", "sft", "--suite", "chartqa", "--protocol", "llava", "--json"]
    capsys.readouterr()
    assert main([*words, "--baseline", "language", "--max-drop", "0.99"]) in (0, 5)
    again = json.loads(capsys.readouterr().out)
    assert again["items"] == 3 and again["gate"]["suites"]["chartqa"]["drop"] == judged["suites"]["chartqa"]["drop"]
