"""Which ranks hold the others up, from real processes and from what was written of many."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from megavlm.platform.runs import Attempt
from megavlm.slurm.stacks import GONE, MISSING, innermost, main, process_state, suspects

WAITING = "import time\ndef wait_for_the_others():\n    time.sleep(60)\nwait_for_the_others()"


def record(folder, rank, frames=("all_reduce (d.py)", "step (loop.py)"), state="runs or waits"):
    told = {"rank": rank, "host": "n1", "pid": 1, "state": state, "frames": list(frames)}
    (folder / f"rank-{rank:05d}.json").write_text(json.dumps(told))


@pytest.fixture
def ranks():
    """Two processes that wait, the second one stopped."""
    started = [subprocess.Popen([sys.executable, "-c", WAITING]) for _ in range(2)]
    time.sleep(1.0)
    started[1].send_signal(signal.SIGSTOP)
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_every_rank_of_this_machine_is_dumped_and_the_stopped_one_suspected(ranks, tmp_path, monkeypatch):
    attempt = Attempt(tmp_path / "01")
    attempt.root.mkdir()
    for rank, process in enumerate(ranks):
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda pid=process.pid: pid)
            attempt.heartbeat(rank, step=7)
    assert main([str(attempt.root)]) == 0
    assert suspects(attempt.root / "stacks") == [{"rank": 1, "host": os.uname().nodename, "why": "stopped"}]
    text = (attempt.root / "stacks" / "rank-00000.txt").read_text()
    assert "wait_for_the_others" in text or MISSING in text or "failed" in text  # where tracing is forbidden
    assert process_state(ranks[0].pid) == "runs or waits" and process_state(2**22 + 1) == GONE


def test_who_stands_elsewhere_than_most_is_suspected(tmp_path):
    for rank in range(8):
        record(tmp_path, rank)
    assert suspects(tmp_path) == []
    record(tmp_path, 5, frames=("read (disk.py)",))
    assert suspects(tmp_path) == [{"rank": 5, "host": "n1", "why": "in read (disk.py)"}]
    record(tmp_path, 2, state="dead")
    assert [one["rank"] for one in suspects(tmp_path)] == [2]


def test_nobody_is_suspected_where_there_is_no_majority_or_all_are_in_the_same_state(tmp_path):
    record(tmp_path, 0)
    record(tmp_path, 1, frames=("read (disk.py)",))
    assert suspects(tmp_path) == []
    for rank in range(2):
        record(tmp_path, rank, state="waits for a disk or a device")
    assert suspects(tmp_path) == [] and suspects(tmp_path / "missing") == []


def test_the_innermost_frames_are_those_of_the_main_thread():
    text = 'Process 1: x\n\nThread 2 (idle): "other"\n    poll (a.py:9)\n'
    text += 'Thread 1 (idle): "MainThread"\n    wait (b.py:7)\n'
    assert innermost(text + "    step (c.py:1)\n    loop (c.py:2)\n    main (c.py:3)\n") == [
        "wait (b.py)",
        "step (c.py)",
        "loop (c.py)",
    ]
    assert innermost("py-spy failed") == []
