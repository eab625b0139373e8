"""A search whose trainings really run: killed in the middle, and gone on with to the set that its trainings tell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megavlm.platform.runs import RunFolder

VIT = {"name": "clip", "image_size": 28, "patch_size": 7, "layers": 1, "hidden": 32, "heads": 4, "ffn": 48, "layer": -1}
CONV = {"name": "convnext", "image_size": 32, "depths": [1, 1, 1, 1], "dims": [8, 8, 16, 24]}
MIXTURE = {"name": "mixture", "image_size": 28, "experts": {"vit": VIT, "conv": CONV}}
# One stage, of few steps, judged by its loss alone: nothing is trained before it, and nothing is answered after it.
SHORT = [
    f"model.encoder={json.dumps(MIXTURE)}",
    "model.connector={name: channel_concat, grid: 2}",
    "stages.language=null",
    "stages.gate=null",
    "stages.sft={after: [], blind: [], steps: 2}",
    "stages.sft.evaluate.text=null",
    "stages.sft.evaluate.vqa=null",
    "stages.sft.parallel.tp=1",
]


@pytest.fixture
def small(study_tree: dict[str, Any], write_study: Callable[[dict[str, Any]], Path]) -> Path:
    """Two encoders, each alone, then both: three trainings."""
    search = {"over": "model.encoder.use", "candidates": ["vit", "conv"], "score": "loss", "better": "lower"}
    scores = {"loss": {"stage": "sft", "metric": "loss", "over": 1}}
    tree = {key: study_tree[key] for key in ("question", "recipe")}
    changes = {"overrides": SHORT, "search": search, "scores": scores, "equal": ["steps"], "executor": {"workers": 2}}
    return write_study(tree | changes)


@pytest.fixture
def start(small: Path, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """`start()`: the study as a process; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def make() -> subprocess.Popen[str]:
        words = ["study", "run", str(small), "--out", str(tmp_path / "out"), "--json"]
        command, pipe = [sys.executable, "-m", "megavlm.platform.cli", *words], subprocess.PIPE
        env = os.environ | {"OMP_NUM_THREADS": "1", "MEGAVLM_QUIET": "1"}
        started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env))
        return started[-1]

    yield make
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.multiprocess
@pytest.mark.timeout(500)
def test_killed_and_gone_on_with_to_the_same_set(start: Callable[[], subprocess.Popen[str]], tmp_path: Path) -> None:
    runs = {name: RunFolder(tmp_path / "out" / "runs" / name / "seed-1") for name in ("vit", "conv")}
    both = RunFolder(tmp_path / "out/runs/vit_conv/seed-1")
    process, deadline = start(), time.monotonic() + 240
    while not both.path("metrics.jsonl").exists():  # a step of the second round
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = {name: run.path("metrics.jsonl").read_bytes() for name, run in runs.items()}

    process = start()
    told, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert {name: run.path("metrics.jsonl").read_bytes() for name, run in runs.items()} == before
    assert [len(run.attempts()) for run in (*runs.values(), both)] == [1, 1, 2], "what had ended is not trained again"

    loss = {name: run.metrics()[-1]["loss"] for name, run in (runs | {"vit_conv": both}).items()}
    alone = min(runs, key=lambda name: loss[name])
    found = json.loads(told)["search"]
    assert found["kept"] == (["vit", "conv"] if loss["vit_conv"] < loss[alone] else [alone])
    tried = {row["variant"]: row["score"] for one in found["rounds"] for row in one["tried"]}
    assert tried == pytest.approx(loss) and len(found["rounds"]) == 2
