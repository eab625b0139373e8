"""Jobs that have to give their nodes back: preemption, signals, people. All of them end as if unbroken."""

from __future__ import annotations

import subprocess

import pytest

from megavlm.slurm import jobs

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(200)]
FLAGS = ("--steps", "60", "--seconds", "0.2", "--save-every", "25", "--save-seconds", "0.3")
ELSEWHERE = {"exclude": "n3,n4"}  # away from the nodes that the test takes from its jobs


def signalled(job, *words):
    """scancel --signal, once the job has done a few steps."""
    job.until_step(4)
    job.cluster.run("scancel", *words, str(job.job_id))


def test_preemption(cluster, steps_job):
    requeued = steps_job(cluster, "requeued", *FLAGS, sbatch={"nodelist": "n3"}, partition="low")
    handed = steps_job(cluster, "handed", *FLAGS, sbatch={"nodelist": "n4"}, partition="lowcancel", successor=True)
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
    assert handed.verdicts() == [("saved", "leave"), ("finished", "stop")] and handed.unbroken(60)
    assert cluster.wait(waits, "COMPLETED")


def test_signals_and_people(cluster, steps_job):
    steps = steps_job(cluster, "to-steps", *FLAGS, nodes=2, sbatch=ELSEWHERE)
    batch = steps_job(cluster, "to-batch", *FLAGS, nodes=2, sbatch=ELSEWHERE)
    twice = steps_job(cluster, "twice", *FLAGS, sbatch=ELSEWHERE)
    person = steps_job(cluster, "person", *FLAGS, sbatch=ELSEWHERE)
    polite = steps_job(cluster, "polite", *FLAGS, sbatch=ELSEWHERE)
    admin = steps_job(cluster, "admin", *FLAGS, sbatch=ELSEWHERE)
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


def test_a_cancelled_run_is_not_started_again(cluster, steps_job):
    job = steps_job(cluster, "cancelled", *FLAGS, cancelled=True)
    assert job.wait("FAILED")["ExitCode"] == "4:0" and job.run.attempts() == []
    handed = steps_job(cluster, "handed-no-further", *FLAGS, successor=True)
    handed.until_step(4)
    waits = cluster.submit(f"--dependency=afterok:{handed.job_id}", "--kill-on-invalid-dep=yes", "-n1", script="true")
    cluster.run("scancel", str(handed.job_id))
    cluster.wait(jobs.history(handed.run)[1].job_id, "CANCELLED")
    cluster.wait(waits, "CANCELLED")
    assert not handed.run.finished and len(handed.run.attempts()) == 1
    assert subprocess.run(["squeue", "-h", "-j", str(waits)], capture_output=True).stdout == b""
