"""Jobs that have to give their nodes back: time limits, preemption, signals, people. All of them end as if unbroken."""

from __future__ import annotations

import subprocess

import pytest

from megavlm.slurm import jobs

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(200)]
FLAGS = ("--steps", "60", "--seconds", "0.2", "--save-every", "25", "--save-seconds", "0.3")
ELSEWHERE = ("--exclude=n3,n4",)  # away from the nodes that the test takes from its jobs


def signalled(job, *words):
    """scancel --signal, once the job has done a few steps."""
    job.until_step(4)
    job.cluster.run("scancel", *words, str(job.job_id))


def test_preemption(cluster, steps_job):
    requeued = steps_job(cluster, "requeued", *FLAGS, options=("-p", "low", "-w", "n3"), partition="low")
    handed = steps_job(
        cluster, "handed", *FLAGS, options=("-p", "lowcancel", "-w", "n4"), partition="lowcancel", successor=True
    )
    waits = cluster.submit(f"--dependency=afterok:{handed.job_id}", "--kill-on-invalid-dep=yes", "-n1", script="true")
    for job in (requeued, handed):
        job.until_step(4)
    preemptor = cluster.submit("-p", "main", "-w", "n3,n4", "-N2", "--exclusive", script="sleep 1")
    cluster.wait(preemptor, "COMPLETED", seconds=60)
    requeued.wait()
    assert requeued.verdicts() == [("saved", "leave"), ("finished", "stop")] and requeued.unbroken(60)
    assert [event["restart"] for event in requeued.events("launched")] == [0, 1]
    chain = [job.job_id for job in jobs.history(handed.run)]
    cluster.wait(chain[1], "COMPLETED", seconds=60)
    print(handed.log, chain)
    assert handed.verdicts() == [("saved", "leave"), ("finished", "stop")] and handed.unbroken(60)
    assert cluster.wait(waits, "COMPLETED")


def test_signals_and_people(cluster, steps_job):
    steps = steps_job(cluster, "to-steps", *FLAGS, nodes=2, options=ELSEWHERE)
    batch = steps_job(cluster, "to-batch", *FLAGS, nodes=2, options=ELSEWHERE)
    twice = steps_job(cluster, "twice", *FLAGS, options=ELSEWHERE)
    person = steps_job(cluster, "person", *FLAGS, options=ELSEWHERE)
    polite = steps_job(cluster, "polite", *FLAGS, options=ELSEWHERE)
    admin = steps_job(cluster, "admin", *FLAGS, options=ELSEWHERE)
    signalled(steps, "--signal=USR1")
    signalled(batch, "--signal=USR1", "--batch")
    signalled(twice, "--signal=TERM", "--batch")
    signalled(person)
    polite.until_step(4)
    polite.run.path(jobs.CANCELLED).touch()
    admin.until_step(4)
    cluster.run("scontrol", "requeue", str(admin.job_id))
    twice.until_step(20, attempt=2)
    signalled(twice, "--signal=TERM", "--batch")
    person.wait("CANCELLED")
    assert polite.wait("FAILED")["ExitCode"] == "4:0"
    assert polite.verdicts() == [("saved", "stop")] and polite.events("asked")[0]["why"] == "cancel"
    assert [event["why"] for event in person.events("asked")] == ["cancel"] and not person.run.finished
    for job, attempts in ((steps, 2), (batch, 2), (twice, 3), (admin, 2)):
        job.wait()
        assert job.unbroken(60) and len(job.run.attempts()) == attempts, job.log
        if job is not admin:
            assert job.verdicts() == [("saved", "leave")] * (attempts - 1) + [("finished", "stop")]
    assert batch.events("asked")[0]["why"] == "signal" and steps.events("asked") == []


def test_the_time_limit(cluster, steps_job):
    flags = ("--steps", "400", "--seconds", "0.2", "--save-every", "25")
    requeued = steps_job(cluster, "requeued-in-time", *flags, minutes=1, save_seconds=20, options=ELSEWHERE)
    handed = steps_job(cluster, "handed-on", *flags, minutes=1, save_seconds=20, successor=True, options=ELSEWHERE)
    late = steps_job(
        cluster, "late", *flags, "--save-seconds", "4", minutes=1, save_seconds=1, options=ELSEWHERE
    )  # Slurm's timer may be late as well: the save is then cut off, and the job goes on from the last one
    waits = cluster.submit(f"--dependency=afterok:{handed.job_id}", "--kill-on-invalid-dep=yes", "-n1", script="true")
    requeued.wait(seconds=150)
    print(requeued.log, late.log)
    assert requeued.unbroken(400) and requeued.verdicts()[-1] == ("finished", "stop")
    assert {event["why"] for event in requeued.events("asked")} == {"time limit"}
    late.wait(seconds=150)
    assert late.unbroken(400)
    cluster.wait(waits, "COMPLETED", seconds=150)
    assert handed.unbroken(400)
    assert all(job.by == "successor" for job in jobs.history(handed.run)[1:])


def test_a_cancelled_run_is_not_started_again(cluster, steps_job):
    job = steps_job(cluster, "cancelled", *FLAGS, options=("--hold",))
    job.run.path(jobs.CANCELLED).touch()
    cluster.run("scontrol", "release", str(job.job_id))
    assert job.wait("FAILED")["ExitCode"] == "4:0" and job.run.attempts() == []
    handed = steps_job(cluster, "handed-no-further", *FLAGS, successor=True)
    handed.until_step(4)
    waits = cluster.submit(f"--dependency=afterok:{handed.job_id}", "--kill-on-invalid-dep=yes", "-n1", script="true")
    cluster.run("scancel", str(handed.job_id))
    cluster.wait(jobs.history(handed.run)[1].job_id, "CANCELLED")
    cluster.wait(waits, "CANCELLED")
    assert not handed.run.finished and len(handed.run.attempts()) == 1
    assert subprocess.run(["squeue", "-h", "-j", str(waits)], capture_output=True).stdout == b""
