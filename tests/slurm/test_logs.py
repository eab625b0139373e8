"""The logs of a run: their ends, the first errors, and all that comes, across attempts."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time

import pytest

from megavlm.platform.errors import InputError
from megavlm.platform.runs import RunFolder
from megavlm.slurm import jobs
from megavlm.slurm.first_errors import first_error, first_errors
from megavlm.slurm.follow import follow
from megavlm.slurm.logs import main


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("MEGAVLM_RUNS", str(tmp_path))
    return RunFolder.create(tmp_path / "mini", {"name": "mini"}, {}, ["megavlm", "train", "mini"])


def submitted(run, name="sft", job_id=7) -> None:
    fields = {"cluster": "c", "script": "s", "nodes": 2, "spares": 0, "gpus_per_node": 0, "processes_per_node": 1}
    jobs.add(run, jobs.SubmittedJob(name=name, job_id=job_id, command=[], after=[], by="submit", **fields))


def test_the_last_attempt_or_a_given_one(run, capsys):
    run.new_attempt().log_path(0).write_text("old\n")
    attempt = run.new_attempt()
    attempt.log_path(0).write_text("".join(f"line {i}\n" for i in range(9)))
    attempt.log_path(1).write_text("other rank\n")
    assert main(["mini", "--rank", "0", "--lines", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"attempt": 2, "logs": {str(attempt.log_path(0)): ["line 7", "line 8"]}}
    assert main(["mini"]) == 0
    assert "other rank" in capsys.readouterr().out
    assert main(["mini", "--attempt", "1"]) == 0
    assert "old" in capsys.readouterr().out
    assert main(["mini", "--merge", "--lines", "1"]) == 0
    assert capsys.readouterr().out == "rank 0: line 8\nrank 1: other rank\n"


@pytest.mark.parametrize("arguments", [["--attempt", "9"], ["--rank", "5"], ["--job", "none"], ["--follow", "--json"]])
def test_what_does_not_exist(run, arguments):
    run.new_attempt()
    with pytest.raises(InputError):
        main(["mini", *arguments])


def test_the_log_of_the_job_itself_is_shown_on_request_and_before_the_first_attempt(run, capsys):
    submitted(run)
    folder = jobs.folder(run, "sft")
    folder.mkdir(parents=True)
    (folder / "slurm-7.log").write_text("module not found\n")
    assert main(["mini"]) == 0
    assert "module not found" in capsys.readouterr().out
    run.new_attempt().log_path(0).write_text("a rank\n")
    assert main(["mini"]) == 0
    assert "module not found" not in capsys.readouterr().out
    assert main(["mini", "--job", "sft", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "attempt": None, "logs": {str(folder / "slurm-7.log"): ["module not found"]},
    }  # fmt: skip


def raised(code: str) -> str:
    """What Python itself prints when `code` fails."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode
    return done.stderr


CHAIN = "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise KeyError('tp') from error"


def test_a_traceback_is_told_whole_with_what_stood_before_and_nothing_after(run):
    lines = [*(f"{{'step': {i}}}" for i in range(9)), *raised(CHAIN).splitlines(), "[rank 0] teardown", "Traceback"]
    found = first_error(f"{line}\n" for line in lines)
    assert found[:3] == ["{'step': 6}", "{'step': 7}", "{'step': 8}"]
    assert "ZeroDivisionError: division by zero" in found and found[-1] == "KeyError: 'tp'"


def test_a_traceback_is_known_behind_the_prefixes_of_torchrun_and_srun():
    for prefix in ("[rank3]: ", "3: ", "[default0]:"):
        lines = [f"{prefix}{line}" for line in raised("raise ValueError('no\\nlines')").splitlines()]
        found = first_error([*lines, f"{prefix}good", f"{prefix}good"])
        assert found == lines[:3]


def test_what_dies_without_python_is_an_error_and_a_good_log_has_none():
    dead = ["loss 1", "loss 2", "terminate called after throwing an instance of 'c10'", "what(): x", "a", "b", "c"]
    assert first_error(dead) == dead[:6]
    good = ["val_error: 0.1", "error rate 3 %", "mean absolute error 0.5", "no errors", "retry after Errno"]
    assert first_error(good) == []
    assert len(first_error(["Traceback (most recent call last):", *["  File x"] * 900, "E: x"])) <= 201


def test_the_rank_that_failed_first_comes_first(run, capsys):
    with run.new_attempt() as attempt:
        for rank in (0, 1, 2):
            attempt.heartbeat(rank, 5)
            attempt.log_path(rank).write_text(raised(f"raise RuntimeError('rank {rank}')") if rank else "fine\n")
        attempt.event("failed", rank=2, what="RuntimeError: rank 2", where=None, fix=None, exit_code=1)
        time.sleep(0.01)
        attempt.event("failed", rank=1, what="RuntimeError: rank 1", where=None, fix=None, exit_code=1)
        time.sleep(0.01)
        attempt.event("failed", rank=0, what="no room", where=None, fix="make some", exit_code=1)
    assert [error["rank"] for error in first_errors(attempt)] == [2, 1, 0]
    assert first_errors(attempt)[2]["lines"] == ["no room", "make some"]
    run.new_attempt().log_path(0).write_text("fine so far\n")
    assert main(["mini", "--errors", "--json"]) == 0  # the last attempt that has any
    told = json.loads(capsys.readouterr().out)
    assert told["attempt"] == 1 and told["errors"][0]["lines"][-1] == "RuntimeError: rank 2"
    assert main(["mini", "--errors"]) == 0
    assert capsys.readouterr().out.startswith("== rank 2 on ")
    assert main(["mini", "--errors", "--attempt", "2"]) == 0
    assert capsys.readouterr().out == "no error in the logs of mini\n"


def wait_until(true, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def test_following_goes_on_in_the_next_attempt_and_ends_with_the_run(run):
    first = run.new_attempt()
    first.event("started", pid=1, host="elsewhere")
    log = first.log_path(0)
    log.write_text("a\nb\nc\n")
    files, told = (lambda: sorted(run.attempts()[-1].logs.rglob("*.log"))), []
    reader = threading.Thread(target=lambda: told.extend(follow(files, run, lines=2, merge=True)))
    reader.start()
    wait_until(lambda: len(told) == 2)
    with log.open("a") as out:
        out.write("d\ne")
    wait_until(lambda: len(told) == 3)
    run.new_attempt().log_path(1).write_text("next\nlast")
    run.mark_finished()
    reader.join(10)
    assert told == ["rank 0: b", "rank 0: c", "rank 0: d", "rank 0: e", "rank 1: next", "rank 1: last"]


def test_following_a_run_by_hand_ends_when_its_attempt_does(run, capsys):
    with pytest.raises(InputError), run.new_attempt() as attempt:
        attempt.log_path(0).write_text("gone\n")
        raise InputError("no data")
    assert main(["mini", "--follow"]) == 0
    assert capsys.readouterr().out == f"== {attempt.log_path(0)}\ngone\n"
