"""What a run is doing, told from its files alone."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from megavlm.platform.errors import ConfigError, SavedResumable
from megavlm.platform.runs import RunFolder
from megavlm.platform.runs.lines import TAIL_BYTES, append_line, last_line, read_lines
from megavlm.platform.runs.state import SILENT_SECONDS, describe


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "mini", {"name": "mini"}, {}, ["megavlm", "train", "mini"])


def test_states_of_a_run(run):
    assert describe(run)["state"] == "new"
    with run.new_attempt() as attempt:
        attempt.heartbeat(rank=0, step=3)
        run.append_metrics({"step": 3, "loss": 1.25})
        facts = describe(run)
        assert (facts["state"], facts["step"], facts["metrics"]["loss"]) == ("running", 3, 1.25)
        assert describe(run, now=time.time() + SILENT_SECONDS + 1)["state"] == "silent"
        run.mark_saved(3)
        assert describe(run)["state"] == "saved"
    with pytest.raises(ConfigError), run.new_attempt():
        raise ConfigError("tp 3 does not divide 4 heads")
    facts = describe(run)
    assert facts["state"] == "failed" and "tp 3" in facts["error"]
    run.mark_finished()
    assert describe(run)["state"] == "finished"
    assert (describe(run)["step"], describe(run)["ranks"]) == (3, [])


def test_a_killed_run_is_stopped_not_running(run):
    code = (
        "import os, signal, sys; from megavlm.platform.runs import RunFolder\n"
        "RunFolder.open(sys.argv[1]).new_attempt().__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(run.root)]).returncode == -9
    assert describe(run)["state"] == "stopped"


def test_a_run_that_was_only_submitted_is_queued(tmp_path):
    (tmp_path / "waiting").mkdir()
    append_line(tmp_path / "waiting" / "jobs.jsonl", {"name": "sft", "job_id": 7})
    assert describe(RunFolder(tmp_path / "waiting"))["state"] == "queued"
    (tmp_path / "waiting" / "cancelled").touch()
    assert describe(RunFolder(tmp_path / "waiting"))["state"] == "cancelled"


def test_a_cancelled_run_is_so_once_its_attempt_is_over(run):
    with pytest.raises(SavedResumable), run.new_attempt() as attempt:
        attempt.heartbeat(rank=0, step=3)
        run.path("cancelled").touch()
        assert describe(run)["state"] == "running"
        run.mark_saved(3)
        raise SavedResumable("saved at step 3")
    assert describe(run)["state"] == "cancelled" and describe(run)["saved_step"] == 3


def test_an_attempt_that_its_launcher_calls_over_runs_no_more(run):
    attempt = run.new_attempt()
    attempt.event("launched", nodes=["n1"])
    assert describe(run)["state"] == "running"
    attempt.event("judged", verdict="node failure", action="retry")
    assert describe(run)["state"] == "stopped"
    run.new_attempt().event("launched", nodes=["n2"])
    assert describe(run)["state"] == "running"


def test_however_long_the_metrics_are_only_their_end_is_read(run):
    path = run.path("metrics.jsonl")
    with path.open("w") as out:
        out.writelines(f'{{"step": {step}, "pad": "{1000 * "x"}"}}\n' for step in range(100_000))
    start = time.process_time()
    assert describe(run)["metrics"]["step"] == 99_999
    assert time.process_time() - start < 0.1  # all of it takes seconds


@pytest.mark.parametrize("size", [10, TAIL_BYTES - 20, TAIL_BYTES, 3 * TAIL_BYTES, 20 * TAIL_BYTES])
@pytest.mark.parametrize("tail", ["", '{"step": 3, "lo', "\n\n"])
def test_the_last_whole_line_is_found_whatever_its_length_and_what_follows(tmp_path, size, tail):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        append_line(path, {"step": step, "pad": "x" * size})
    with path.open("a") as out:
        out.write(tail)
    assert last_line(path) == read_lines(path)[-1]
    assert last_line(path)["step"] == 2


def test_no_whole_line_is_none(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert last_line(path) is None
    path.write_text('{"step": 1')
    assert last_line(path) is None
