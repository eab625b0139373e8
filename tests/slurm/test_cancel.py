"""`cancel` on a real Slurm, on a run by hand, and where there is nothing to stop."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from megavlm.platform.runs import RunFolder
from megavlm.slurm import cancel, jobs, queue

LISTENS = "trap 'echo heard; exit 0' USR1; echo ready; while :; do sleep 0.1; done"
BY_HAND = """
import sys, time
from megavlm.platform.runs import RunFolder, SaveRequest
run = RunFolder.open(sys.argv[1])
with run.new_attempt() as attempt, SaveRequest(attempt) as request:
    while not request.requested:
        time.sleep(0.05)
    run.mark_saved(3)
    attempt.exit_code = 4
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("MEGAVLM_RUNS", str(tmp_path))
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / "config.yaml").write_text("name: mini\n")
    return RunFolder.open(tmp_path / "mini")


def submitted(run, name: str, job_id: int, by: jobs.By = "submit") -> int:
    fields = {"cluster": "c", "script": "s", "nodes": 1, "spares": 0, "gpus_per_node": 0, "processes_per_node": 1}
    jobs.add(run, jobs.SubmittedJob(name=name, job_id=job_id, command=[], after=[], by=by, **fields))
    return job_id


def told(capsys, *arguments: str) -> dict:
    assert cancel.main(["mini", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def wait_until(true, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)


class TestOnSlurm:
    pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120)]

    def test_what_runs_is_asked_and_what_waits_is_removed(self, cluster, run, capsys):
        running = submitted(run, "a", cluster.submit(script=LISTENS))
        array = submitted(run, "c", cluster.submit("--array=0-5%2", script=LISTENS))
        dependent = submitted(run, "b", cluster.submit(f"--dependency=afterok:{running}", script="true"))
        follows = cluster.submit(f"--dependency=afternotok:{running}", script="true")
        successor = submitted(run, "a", follows, "successor")
        over = submitted(run, "d", cluster.submit(script="true"))
        other = cluster.submit(script="sleep 60")  # somebody else's
        wait_until(lambda: cluster.log(running) == "ready\n")
        outputs = [cluster.shared / f"slurm-{array}_{task}.out" for task in (0, 1)]
        wait_until(lambda: all(path.exists() and path.read_text() == "ready\n" for path in outputs))
        cluster.wait(over, "COMPLETED")
        found = told(capsys)
        assert (found["marked"], found["asked"], found["attempt"]) == (True, [running, array], None)
        assert sorted(found["removed"]) == sorted([dependent, successor])
        assert run.path("cancelled").exists()
        cluster.wait(running, "COMPLETED")
        assert cluster.log(running) == "ready\nheard\n"
        states = queue.ask([dependent, successor, other])
        assert {states[job_id].state for job_id in (dependent, successor)} == {"CANCELLED"}
        wait_until(lambda: not queue.ask([array])[array].alive)
        assert queue.ask([array])[array].tasks == {"CANCELLED": 1, "COMPLETED": 2}  # 1: the rest
        assert states[other].alive
        cluster.clear()

    def test_now_means_at_once(self, cluster, run, capsys):
        running = submitted(run, "a", cluster.submit(script=LISTENS))
        waiting = submitted(run, "b", cluster.submit("--hold", script="true"))
        cluster.wait(running, "RUNNING")
        assert cancel.main(["mini", "--now"]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"ended at once: job {running}, job {waiting}\n") and "megavlm requeue" in out
        cluster.wait(running, "CANCELLED")
        cluster.wait(waiting, "CANCELLED")
        assert told(capsys)["ended"] == []  # a second time does no harm
        cluster.clear()


def test_a_run_by_hand_saves_and_stops(run, capsys):
    process = subprocess.Popen([sys.executable, "-c", BY_HAND, str(run.root)])
    try:
        wait_until(lambda: run.attempts() and run.attempts()[-1].events())
        found = told(capsys)
        assert (found["attempt"]["attempt"], found["attempt"]["pid"], found["marked"]) == (1, process.pid, False)
        assert process.wait(20) == 0
    finally:
        process.kill()
    assert run.saved == 3 and not run.path("cancelled").exists()


def test_where_nothing_runs_nothing_is_done(run, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert cancel.main(["mini"]) == 0
    assert capsys.readouterr().out == "nothing of mini runs or waits\n"
    with run.new_attempt():
        pass
    assert told(capsys)["attempt"] is None and not run.path("cancelled").exists()
