"""Training that is stopped, killed and resumed, also in another layout, is the training that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megavlm.megatron_mm.training.report import add_sections
from megavlm.platform.report import Report
from megavlm.platform.runs import RunFolder

Start = Callable[..., "subprocess.Popen[str]"]


def losses(run: Path, stage: str = "sft") -> dict[int, tuple[float, float]]:
    """step -> (loss, gradient norm), the last line where a step was repeated."""
    lines = RunFolder(run).metrics(unique=("stage", "step")) if run.exists() else []
    return {line["step"]: (line["loss"], line["grad_norm"]) for line in lines if line["stage"] == stage}


def finish(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    out, err = process.communicate(timeout=150)
    return process.returncode, json.loads(out or "{}"), err


def wait_for_step(process: subprocess.Popen[str], run: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while max(losses(run), default=0) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.multiprocess
@pytest.mark.timeout(280)
def test_stopped_killed_and_resumed(megavlm: Start, recipe: Path, tmp_path: Path) -> None:
    whole, broken, other = (tmp_path / name for name in ("whole", "broken", "other"))

    # The truth: never interrupted.
    code, told, err = finish(megavlm("train", str(recipe), "--out", str(whole), "--json"))
    gate = json.loads((whole / "gate" / "gate.json").read_text())
    assert code == {"pass": 0, "fail": 3, "undecided": 5}[gate["verdict"]], err
    assert told["finished"] and told["stages"]["sft"]["steps"] == 40 and (whole / "finished").exists()
    reference = losses(whole)
    assert sorted(reference) == list(range(1, 41)) and reference[40][0] < reference[1][0]
    answers = {path.name for path in (whole / "predictions" / "sft").glob("*.jsonl")}
    assert answers == {"text.jsonl", "vqa.jsonl", "vqa.blind.jsonl"}

    report = Report("training")
    add_sections(RunFolder(whole), report)
    page = report.html()
    assert all(word in page for word in ("megatron-core", "tokens/s", "Packs", "<svg", "sft", "language"))

    # USR1: saved at a step of its choice, exit code 4.
    process = megavlm("train", str(recipe), "--out", str(broken), "--json")
    wait_for_step(process, broken, 1)
    process.send_signal(signal.SIGUSR1)
    code, told, err = finish(process)
    assert code == 4 and not told["finished"], err
    stopped = told["saved"]
    assert 1 <= stopped < 40 and sorted(losses(broken)) == list(range(1, stopped + 1))
    shutil.copytree(broken, other)

    # Kill -9, after the run got past another step: its ranks die with it.
    process = megavlm("train", str(recipe), "--out", str(broken), "--json")
    wait_for_step(process, broken, stopped + 1)
    ranks = [beat["pid"] for beat in RunFolder(broken).attempts()[-1].heartbeats()]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in ranks) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(ranks) == 2 and not any(alive(pid) for pid in ranks)
    assert max(losses(broken)) < 40

    # The same command again: bit-equal to the run that was never interrupted.
    code, told, err = finish(megavlm("train", str(recipe), "--out", str(broken), "--json"))
    assert told["finished"], err
    assert losses(broken) == reference

    # Another tensor-parallel size goes on from the same save.
    changed = ["stages.language.parallel.tp=1", "stages.sft.parallel.tp=1"]
    process = megavlm("train", str(recipe), *changed, "--nproc", "1", "--out", str(other), "--json")
    wait_for_step(process, other, min(stopped + 3, 40))
    resumed = losses(other)
    for step in range(stopped + 1, min(stopped + 3, 40) + 1):
        assert resumed[step][0] == pytest.approx(reference[step][0], abs=1e-5)
