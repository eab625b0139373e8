"""What Slurm is asked about jobs, on a real one: with accounting off and on, and when it does not answer."""

from __future__ import annotations

import os
import shutil
import time

import pytest

from megavlm.slurm import queue
from megavlm.slurm.queue import JobState, ask, parse

slurm = [pytest.mark.slurm, pytest.mark.timeout(120)]


def jobs_of_every_kind(cluster) -> dict[str, int]:
    """Submitted side by side and awaited."""
    submit = cluster.submit
    kinds = {"completed": submit(script="true"), "failed": submit(script="exit 3")}
    kinds["never"] = submit(f"--dependency=afterok:{kinds['failed']}", script="true")
    kinds["running"] = submit("--nodes=2", script="sleep 100")
    kinds["held"] = submit("--hold", script="true")
    kinds["later"] = submit("--begin=now+1hour", script="true")
    kinds["cancelled"] = submit(script="sleep 100")
    kinds["requeued"] = submit(script="sleep 100")
    kinds["array"] = submit("--array=0-4,7%1", script='[ "$SLURM_ARRAY_TASK_ID" = 0 ] || sleep 100')
    kinds["resources"] = submit("--nodes=4", "--exclusive", script="true")
    cluster.wait(kinds["completed"], "COMPLETED")
    cluster.wait(kinds["failed"], "FAILED")
    for name in ("cancelled", "requeued", "running"):
        cluster.wait(kinds[name], "RUNNING")
    cluster.run("scancel", str(kinds["cancelled"]))
    cluster.run("scontrol", "requeue", str(kinds["requeued"]))
    cluster.wait(kinds["cancelled"], "CANCELLED")
    until(lambda: ask([kinds["requeued"]])[kinds["requeued"]].reason == "BeginTime")
    until(lambda: (ask([kinds["array"]])[kinds["array"]].tasks or {}).get("COMPLETED") == 1)
    until(lambda: ask([kinds["never"]])[kinds["never"]].reason == "DependencyNeverSatisfied")
    return kinds


def until(true, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.2)


def check_every_kind(cluster, count_calls) -> dict[str, JobState]:
    kinds = jobs_of_every_kind(cluster)
    before = count_calls("squeue")
    found = ask(kinds.values())
    assert count_calls("squeue") == before + 1
    told = {name: found[job_id] for name, job_id in kinds.items()}
    states = {name: state.state for name, state in told.items()}
    assert states.pop("array") == "RUNNING"
    assert states == {
        "completed": "COMPLETED", "failed": "FAILED", "cancelled": "CANCELLED", "running": "RUNNING",
        "never": "PENDING", "held": "PENDING", "later": "PENDING", "requeued": "PENDING", "resources": "PENDING",
    }  # fmt: skip
    assert told["array"].tasks == {"COMPLETED": 1, "PENDING": 4, "RUNNING": 1}
    reasons = {name: told[name].reason for name in ("never", "held", "later", "requeued")}
    assert reasons == {
        "never": "DependencyNeverSatisfied", "held": "JobHeldUser", "later": "BeginTime", "requeued": "BeginTime",
    }  # fmt: skip
    assert told["resources"].reason in {"Resources", "Priority"}
    assert len(told["running"].nodes) > len("n1") and told["running"].starts and told["later"].starts
    assert told["held"].starts is None and told["held"].nodes == ""
    assert [told[name].alive for name in ("running", "held", "failed")] == [True, True, False]
    return told


def alike(one: JobState, other: JobState) -> bool:
    """Whether they tell the same, beside the reason of an end, which accounting does not keep."""
    return (one.state, one.nodes, one.starts, one.tasks) == (other.state, other.nodes, other.starts, other.tasks)


@pytest.fixture
def count_calls(tmp_path, monkeypatch):
    """Stands between us and Slurm's commands on PATH, and counts; `forgets` makes one as it is long after a job."""
    folder = tmp_path / "counted"
    folder.mkdir()
    for name in ("squeue", "sacct", "scontrol"):
        script = folder / name
        script.write_text(f'#!/bin/sh\necho "$*" >> {folder}/{name}.calls\nexec {shutil.which(name)} "$@"\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def count(name: str) -> int:
        calls = folder / f"{name}.calls"
        return len(calls.read_text().splitlines()) if calls.exists() else 0

    def forgets(name: str) -> None:
        (folder / name).write_text("#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2\nexit 1\n")

    count.forgets = forgets
    return count


class TestOnSlurm:
    pytestmark = slurm

    def test_every_kind_of_job_without_accounting(self, cluster, count_calls):
        told = check_every_kind(cluster, count_calls)
        assert ask([10**6]) == {10**6: JobState(10**6, queue.UNKNOWN)}  # alone: squeue fails with "Invalid job id"
        known = told["failed"]
        assert ask([10**6, known.job_id])[known.job_id] == known
        many = ask([*range(10**6, 10**6 + 50_000), known.job_id])
        assert many[known.job_id] == known and len(many) == 50_001
        cluster.clear()

    def test_every_kind_of_job_with_accounting_and_what_squeue_forgot(self, accounting_cluster, count_calls):
        told = check_every_kind(accounting_cluster, count_calls)
        assert count_calls("sacct") == 0  # nothing was forgotten yet
        count_calls.forgets("squeue")
        ids = {name: told[name].job_id for name in ("completed", "failed", "cancelled", "running", "array")}

        def remembered() -> bool:  # accounting learns of things a second or two later
            states = ask(ids.values())
            return all(alike(states[job_id], told[name]) for name, job_id in ids.items())

        until(remembered)
        assert ask([10**6])[10**6].state == queue.UNKNOWN


def test_without_the_commands_of_slurm_nobody_is_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask([7])[7] == JobState(7, queue.UNREACHABLE, "'squeue' is not on this machine")
    assert ask([]) == {}


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("7|CANCELLED by 1000|2026-01-02T03|None assigned|None", JobState(7, "CANCELLED", starts="2026-01-02T03")),
        ("7|RUNNING|2026-01-02T03|n[1-2]|None", JobState(7, "RUNNING", None, "n[1-2]", "2026-01-02T03")),
        ("7|PENDING|N/A||a|b", JobState(7, "PENDING", "a|b")),
        ("7|COMPLETED|Unknown|n1|", JobState(7, "COMPLETED", None, "n1")),
    ],
)  # fmt: skip
def test_lines_of_squeue_and_sacct(line, state):
    assert parse(f"{line}\n\ngarbage\n8|RUNNING|N/A||None\n", [7]) == {7: state}


def test_an_array_counts_its_tasks_and_is_as_lively_as_its_liveliest():
    rows = ["5_[2-9:2,12,20-21%2]|PENDING|N/A||JobArrayTaskLimit", "5_0|FAILED|N/A|n1|NonZeroExitCode"]
    waiting = parse("\n".join(rows), [5])[5]
    assert (waiting.state, waiting.reason) == ("PENDING", "JobArrayTaskLimit")
    assert waiting.tasks == {"FAILED": 1, "PENDING": 7}
    assert parse("\n".join([*rows, "5_1|RUNNING|N/A|n1|None"]), [5])[5].state == "RUNNING"
    over = parse("5_0|COMPLETED|N/A|n1|None\n5_1|TIMEOUT|N/A|n1|TimeLimit", [5])[5]
    assert (over.state, over.ended) == ("TIMEOUT", True)
