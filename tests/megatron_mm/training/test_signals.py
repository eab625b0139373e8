"""A scheduler's signal goes to every process of a job step at once: to torchrun, to the ranks, to all they start."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megavlm.platform.runs import RunFolder

Start = Callable[..., "subprocess.Popen[str]"]


def descendants(root: int) -> list[int]:
    """`root` and every process below it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [root]
    for pid in found:  # grows as it is walked
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def signal_all(root: int, number: signal.Signals) -> int:
    """Send to every process, as slurmd does; how many there were."""
    pids = descendants(root)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return len(pids)


def wait(process: subprocess.Popen[str], until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not until():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def finish(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    out, err = process.communicate(timeout=90)
    return process.returncode, json.loads(out or "{}"), err


def figures(run: Path) -> dict[int, tuple[float, float]]:
    lines = RunFolder(run).metrics(unique=("stage", "step"))
    return {line["step"]: (line["loss"], line["grad_norm"]) for line in lines}


@pytest.mark.multiprocess
@pytest.mark.timeout(500)
def test_a_signal_to_every_process_saves_on_every_rank(megavlm: Start, recipe: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = ["train", str(recipe), "--stage", "language", "stages.language.steps=40", "stages.language.evaluate={}"]
    words += ["stages.gate=null", "--json"]
    code, told, err = finish(megavlm(*words, "--out", str(whole)))
    assert code == 0 and told["stages"]["language"]["steps"] == 40, err

    # While the ranks still import torch: none dies, and there is nothing to save.
    words += ["stages.language.checkpoint.every=1"]
    process = megavlm(*words, "--out", str(broken))
    wait(process, lambda: len(list((broken / "attempts").glob("01/heartbeat/rank-*"))) == 2)
    assert signal_all(process.pid, signal.SIGUSR1) >= 4
    code, told, err = finish(process)
    attempt = RunFolder(broken).attempts()[0]
    assert (code, told["saved"]) == (4, 0), err
    assert {beat["doing"] for beat in attempt.heartbeats()} == {"start"} and not figures(broken)
    assert [event["exit_code"] for event in attempt.events() if event["kind"] == "ended"] == [4]

    # In a step, or in a save: there is one after each.
    process = megavlm(*words, "--out", str(broken))
    wait(process, lambda: broken.joinpath("metrics.jsonl").exists() and max(figures(broken), default=0) >= 3)
    assert signal_all(process.pid, signal.SIGTERM) >= 4
    code, told, err = finish(process)
    stopped = told["saved"]
    assert code == 4 and 3 <= stopped < 40 and RunFolder(broken).saved == stopped, err
    attempt = RunFolder(broken).attempts()[1]
    kinds = [event["kind"] for event in attempt.events()]
    assert "failed" not in kinds and kinds[-2:] == ["saved_on_request", "ended"]
    assert (broken / "checkpoints" / "language" / f"step-{stopped:06d}" / "COMPLETE").exists()

    # A rank that is killed says nothing, and its partner only that it is gone.
    process = megavlm(*words, "--out", str(broken))
    wait(process, lambda: max(figures(broken)) > stopped)
    os.kill(RunFolder(broken).attempts()[2].heartbeats()[1]["pid"], signal.SIGKILL)
    code, told, err = finish(process)
    assert code == 1 and told["error"]["what"] == f"rank 1 on {socket.gethostname()} was killed by signal 9", err

    # The same command goes on, to the bit.
    code, told, err = finish(megavlm(*words, "--out", str(broken)))
    assert code == 0 and told["saved"] is None, err
    assert figures(broken) == figures(whole) and sorted(figures(whole)) == list(range(1, 41))
    by_attempt = {line["attempt"] for line in RunFolder(broken).metrics()}
    assert by_attempt == {2, 3, 4} and all(line["time"] > 1.7e9 for line in RunFolder(broken).metrics())
