"""What `status` tells: from files alone, and with what a real Slurm says of the jobs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.runs import RunFolder
from megavlm.slurm import jobs, status
from megavlm.slurm.reasons import explain


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MEGAVLM_RUNS", str(tmp_path))
    return tmp_path


def make(root, name: str) -> RunFolder:
    (root / name).mkdir()
    (root / name / "config.yaml").write_text(f"name: {name}\n")
    return RunFolder.open(root / name)


def submitted(run: RunFolder, job_id: int, name: str = "sft", by: jobs.By = "submit") -> None:
    fields = {"cluster": "c", "script": "s", "nodes": 2, "spares": 0, "gpus_per_node": 0, "processes_per_node": 1}
    jobs.add(run, jobs.SubmittedJob(name=name, job_id=job_id, command=[], after=[], by=by, **fields))


def launched(run: RunFolder, job_id: int, ago: float = 0.0) -> None:
    """An attempt of a job on machines that are none of ours, `ago` seconds ago."""
    attempt = run.new_attempt()
    fields = {"job": "sft", "job_id": job_id, "restart": 0, "nodes": ["n1", "n2"], "gpus": 16, "processes": 4}
    event = {"time": time.time() - ago, "kind": "launched", "spares": [], **fields}
    (attempt.root / "events.jsonl").write_text(json.dumps(event) + "\n")


def told(capsys, *arguments: str) -> dict:
    assert status.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_that_never_saw_slurm_asks_nobody(root, capsys, monkeypatch):
    run = make(root, "mini")
    monkeypatch.setenv("PATH", "")
    assert told(capsys, "mini")["state"] == "new"
    with run.new_attempt() as attempt:
        attempt.heartbeat(rank=0, step=3)
        run.append_metrics({"step": 3, "loss": 1.25})
        facts = told(capsys, str(run.root))
        assert (facts["state"], facts["step"], facts["metrics"]["loss"]) == ("running", 3, 1.25)
        assert (facts["jobs"], facts["scheduler"], facts["advice"]) == ([], None, None)
        assert status.main(["mini"]) == 0
        out = capsys.readouterr().out
        assert out.startswith("mini: running, attempt 1") and "rank 0" in out
    with pytest.raises(ConfigError), run.new_attempt():
        raise ConfigError("tp 3 does not divide 4 heads")
    facts = told(capsys)["runs"][0]
    assert facts["state"] == "failed" and "tp 3" in facts["error"] and "ranks" not in facts
    assert status.main([]) == 0
    assert "mini  failed" in capsys.readouterr().out


def test_an_unknown_run_is_refused_with_the_nearest_and_no_run_is_no_error(root, capsys):
    assert told(capsys)["runs"] == []
    make(root, "mini")
    with pytest.raises(InputError) as error:
        status.main(["minny"])
    assert error.value.fix == "did you mean 'mini'?"


def test_without_slurm_s_commands_the_files_tell(root, capsys, monkeypatch):
    run = make(root, "mini")
    submitted(run, 7)
    monkeypatch.setenv("PATH", "")
    facts = told(capsys, "mini")
    assert (facts["state"], facts["scheduler"]) == ("queued", "'squeue' is not on this machine")
    assert facts["jobs"][0]["state"] == "UNREACHABLE"


@pytest.mark.parametrize(("file", "text"), [("attempts/01/heartbeat/rank-00000", "torn")])
def test_a_run_that_cannot_be_read_hides_no_other(root, capsys, file, text):
    make(root, "a"), make(root, "c")
    path = make(root, "b").path(*file.split("/"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    rows = told(capsys)["runs"]
    assert [row["state"] for row in rows] == ["new", "unreadable", "new"] and rows[1]["error"]
    assert status.main([]) == 0
    assert "b  unreadable" in capsys.readouterr().out


def test_nobody_is_asked_about_finished_runs_among_others(root, capsys, monkeypatch):
    submitted(run := make(root, "mini"), 7)
    run.mark_finished()
    monkeypatch.setenv("PATH", "")
    assert (told(capsys)["scheduler"], told(capsys)["runs"][0]["state"]) == (None, "finished")


def test_the_first_error_names_rank_and_node_and_the_judgement_its_reason(root, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    run = make(root, "mini")
    submitted(run, 7)
    launched(run, 7, ago=60)
    attempt = run.attempts()[-1]
    attempt.heartbeat(1, 4)
    for rank in (3, 1):
        attempt.event("failed", rank=rank, what=f"rank {rank} broke", where="here", fix="mend it", exit_code=2)
        time.sleep(0.01)
    attempt.event("hang", step=4, seconds=70, suspects=[{"rank": 3, "node": "n2", "why": "stopped"}], stacks="st")
    attempt.event("judged", verdict="user error", action="stop", reason="bad configuration: rank 3", exclude=[])
    facts = told(capsys, "mini")
    assert (facts["first_error"]["rank"], facts["first_error"]["node"]) == (3, "n2")
    assert facts["hang"]["suspects"][0]["rank"] == 3 and facts["reason"] == "bad configuration: rank 3"
    assert facts["history"][0]["action"] == "stop" and facts["hours"]["unit"] == "gpu"
    assert facts["hours"]["lost"] > 0.2
    assert status.main(["mini"]) == 0
    out = capsys.readouterr().out
    assert "first    rank 3 on n2: rank 3 broke" in out and "GPU-hours" in out and "user error" in out
    assert "suspected: rank 3 on n2 (stopped)" in out


def test_a_thousand_ranks_are_told_by_the_most_silent(root, capsys):
    attempt = make(root, "mini").new_attempt()
    for rank in range(100):
        beat = {"rank": rank, "step": 5, "time": time.time() - 100 * (rank == 70)}
        (attempt.root / "heartbeat").mkdir(exist_ok=True)
        (attempt.root / "heartbeat" / f"rank-{rank:05d}").write_text(json.dumps(beat))
    assert status.main(["mini"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[2].startswith("  rank 70  step 5, heard 10")
    assert "100; those not heard of for longest" in out and out.count("  rank ") == status.SHOWN_RANKS


@pytest.mark.parametrize(
    ("word", "part", "blocked"),
    [
        ("Priority", "higher priority", False),
        ("launch_failed_requeued_held", "held", True),
        ("ReqNodeNotAvail,_UnavailableNodes:n[1-3]", "down, drained", False),
        ("Nodes required for job are DOWN, DRAINED or reserved", "down, drained", False),
        ("QOSMaxGRESPerUser", "its QOS allows one user no more than is in use: GPUs", False),
        ("AssocGrpCPURunMinutesLimit", "minutes of CPUs for running jobs", False),
        ("QOSMaxWallDurationPerJobLimit", "more than its QOS allows one job: time", True),
        ("QOSMinCpuNotSatisfied", "less than its QOS demands: CPUs", True),
        ("MaxMemPerAccount", "one account no more than is in use: memory", False),
        ("SomethingNew", "Slurm says 'SomethingNew'", False),
    ],
)
def test_reasons_in_plain_words(word, part, blocked):
    reason = explain(word)
    assert part in reason.text and reason.blocked == blocked
    assert reason.fix.format(job=7, run="runs/x")


NO_REASON_TO_WAIT = {"NonZeroExitCode", "OutOfMemory", "BlockMaxError", "BlockFreeAction"}  # of ends, and of Blue Gene


def test_every_reason_in_slurm_s_own_table_has_its_words():
    found = sorted(Path("/usr/lib").glob("*/slurm-wlm/libslurmfull.so"))
    if not found:
        pytest.skip("Slurm's library is not here")
    data = found[0].read_bytes()
    table = data[data.index(b"\0PartitionNodeLimit\0") : data.index(b"\0QOSMinBilling\0") + 15]
    words = {word.decode() for word in table.split(b"\0") if re.fullmatch(rb"[A-Z][A-Za-z]{3,}", word)}
    assert len(words) > 150
    assert {word for word in words if "Slurm says" in explain(word).text} == NO_REASON_TO_WAIT
    assert not any(re.search(r"(Max|Grp|Min|Per)[A-Z]", explain(word).text) for word in words - NO_REASON_TO_WAIT)


class TestOnSlurm:
    pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120)]

    def test_every_way_a_job_and_its_folder_can_stand(self, cluster, root, capsys):
        submit = cluster.submit
        running, failed = submit(script="sleep 100"), submit(script="exit 2")
        never = submit(f"--dependency=afterok:{failed}", script="true")
        held, later = submit("--hold", script="true"), submit("--begin=now+1hour", script="true")
        gone, stopped, successor = submit(script="sleep 100"), submit(script="sleep 100"), submit(script="true")
        cluster.wait(running, "RUNNING")
        cluster.wait(successor, "COMPLETED")
        cluster.run("scancel", str(gone), str(stopped))
        cluster.wait(gone, "CANCELLED")
        waits = submit(f"--dependency=afternotok:{running}", script="true")
        cluster.wait(failed, "FAILED")
        expected = {
            "at-work": ("running", running), "about-to-start": ("starting", running), "stuck": ("silent", running),
            "held-back": ("blocked", held), "in-time": ("queued", later), "never-starts": ("blocked", never),
            "left-alone": ("lost", gone), "never-began": ("failed", failed), "withdrawn": ("cancelled", stopped),
            "forgotten": ("lost", 10**6), "elsewhere": ("running", 10**6), "done": ("finished", successor),
            "handing-on": ("running", waits),
        }  # fmt: skip
        for name, (_, job_id) in expected.items():
            submitted(make(root, name), running if name == "handing-on" else job_id)
        for name in ("at-work", "left-alone", "elsewhere", "handing-on"):
            launched(RunFolder(root / name), expected[name][1])
        for name in ("stuck", "forgotten"):
            launched(RunFolder(root / name), expected[name][1], ago=1000)
        submitted(RunFolder(root / "handing-on"), waits, by="successor")
        wait_until(lambda: cluster.job(never)["Reason"] == "DependencyNeverSatisfied")
        rows = {row["name"]: row for row in told(capsys)["runs"]}
        assert {name: row["state"] for name, row in rows.items()} == {name: it[0] for name, it in expected.items()}
        assert rows["never-starts"]["jobs"][0]["fix"].startswith(f"megavlm cancel {root}/never-starts")
        assert rows["held-back"]["jobs"][0]["fix"] == f"scontrol release {held}"
        assert f"{gone} CANCELLED" in rows["left-alone"]["advice"]
        assert [job["job_id"] for job in rows["handing-on"]["jobs"]] == [running, waits]
        for name in expected:  # one run alone is told the same, for programs and for people
            assert told(capsys, name)["state"] == expected[name][0]
            assert status.main([name]) == 0
            assert capsys.readouterr().out.startswith(f"{name}: {expected[name][0]},")
        cluster.clear()

    def test_two_hundred_runs_cost_one_question_and_less_than_a_second_of_work(
        self, cluster, root, tmp_path_factory, capsys, children_seconds
    ):
        waiting = cluster.submit("--hold", "--array=0-99", script="true")
        for number in range(200):
            run = make(root, f"run-{number:03d}")
            submitted(run, waiting if number % 2 else 10**6 + number)
            launched(run, waiting, ago=1000)
            for rank in range(4 if number % 2 else 0):
                run.attempts()[-1].heartbeat(rank, number)
            if number % 10 == 0:
                run.mark_finished()
        with (root / "run-001" / "metrics.jsonl").open("w") as out:
            out.writelines('{"step": 1, "loss": 1.0, "pad": "%s"}\n' % ("x" * 900) for _ in range(50_000))
        counted = tmp_path_factory.mktemp("bin")
        for name in ("squeue", "sacct", "scontrol", "sinfo"):
            script = counted / name
            script.write_text(f'#!/bin/sh\necho {name} >> {counted}/calls\nexec {shutil.which(name)} "$@"\n')
            script.chmod(0o755)
        path = f"{counted}{os.pathsep}{os.environ['PATH']}"
        code = "import sys; from megavlm.slurm.status import main; sys.exit(main(['--json']))"
        seconds = []
        for _ in range(3):
            (counted / "calls").unlink(missing_ok=True)
            before = children_seconds()
            words, env = [sys.executable, "-c", code], {**os.environ, "PATH": path}
            done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
            seconds.append(children_seconds() - before)
            calls = (counted / "calls").read_text().split()
            assert calls.count("squeue") == 1 and set(calls) <= {"squeue", "sacct"}  # sacct: only says that it is off
        rows = json.loads(done.stdout)["runs"]
        states = [row["state"] for row in rows]
        assert (states.count("finished"), states.count("blocked"), states.count("lost")) == (20, 100, 80)
        assert min(seconds) < 1.0, seconds
        cluster.clear()


def wait_until(true, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.2)
