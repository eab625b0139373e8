from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from megavlm.platform.cli import main
from megavlm.platform.errors import ConfigError
from megavlm.platform.runs import RunFolder
from megavlm.platform.runs.state import SILENT_SECONDS, describe


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("MEGAVLM_RUNS", str(tmp_path))
    return RunFolder.create(tmp_path / "mini", {"name": "mini"}, {}, ["megavlm", "train", "mini"])


def status(capsys, *arguments):
    assert main(["status", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_states_of_a_run(run, capsys):
    assert status(capsys, "mini")["state"] == "new"
    with run.new_attempt() as attempt:
        attempt.heartbeat(rank=0, step=3)
        run.append_metrics({"step": 3, "loss": 1.25})
        facts = status(capsys, str(run.root))
        assert (facts["state"], facts["step"], facts["metrics"]["loss"]) == ("running", 3, 1.25)
        assert describe(run, now=time.time() + SILENT_SECONDS + 1)["state"] == "silent"
        run.mark_saved(3)
        assert status(capsys, "mini")["state"] == "saved"
    with pytest.raises(ConfigError), run.new_attempt():
        raise ConfigError("tp 3 does not divide 4 heads")
    facts = status(capsys, "mini")
    assert facts["state"] == "failed" and "tp 3" in facts["error"]
    run.mark_finished()
    assert status(capsys, "mini")["state"] == "finished"


def test_a_killed_run_is_stopped_not_running(run):
    code = (
        "import os, signal, sys; from megavlm.platform.runs import RunFolder\n"
        "RunFolder.open(sys.argv[1]).new_attempt().__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(run.root)]).returncode == -9
    assert describe(run)["state"] == "stopped"


def test_status_for_people(run, capsys):
    attempt = run.new_attempt()
    attempt.heartbeat(rank=0, step=3)
    assert main(["status", "mini"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("mini: running, attempt 1") and "rank 0" in out


def test_logs_of_the_last_attempt_or_a_given_one(run, capsys):
    run.new_attempt().log_path(0).write_text("old\n")
    attempt = run.new_attempt()
    attempt.log_path(0).write_text("".join(f"line {i}\n" for i in range(9)))
    attempt.log_path(1).write_text("other rank\n")
    assert main(["logs", "mini", "--rank", "0", "--lines", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"attempt": 2, "logs": {str(attempt.log_path(0)): ["line 7", "line 8"]}}
    assert main(["logs", "mini"]) == 0
    assert "other rank" in capsys.readouterr().out
    assert main(["logs", "mini", "--attempt", "1"]) == 0
    assert "old" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--attempt", "9"], ["--rank", "5"]])
def test_logs_that_do_not_exist(run, capsys, arguments):
    run.new_attempt()
    assert main(["logs", "mini", *arguments]) == 2


def test_an_unknown_run_exits_2_with_the_nearest(run, capsys):
    assert main(["status", "minny"]) == 2
    assert "did you mean 'mini'?" in capsys.readouterr().err
