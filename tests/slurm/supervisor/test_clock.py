"""What takes minutes: a time limit, and a long run without an alarm. First by name, so that the rest runs beside it."""

from __future__ import annotations

import pytest

from megavlm.slurm import jobs

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(280)]


def test_the_time_limit(cluster, steps_job):
    """Slurm tells of it up to half a minute early, and enforces it up to half a minute late."""
    flags = ("--steps", "120", "--seconds", "0.4", "--save-every", "25")
    limited = {"minutes": 1, "save_seconds": 40}
    requeued = steps_job(cluster, "requeued-in-time", *flags, **limited)
    handed = steps_job(cluster, "handed-on", *flags, successor=True, **limited)
    waits = cluster.submit(f"--dependency=afterok:{handed.job_id}", "--kill-on-invalid-dep=yes", "-n1", script="true")
    deaf = ("--steps", "20", "--seconds", "0.5", "--save-every", "5")
    never = {"hang": {"seconds": 900, "other_seconds": 900}, "minutes": 1, "save_seconds": 1}
    cut = steps_job(cluster, "cut-off", *deaf, **never)
    handed_cut = steps_job(cluster, "cut-off-and-handed-on", *deaf, successor=True, **never)
    for job in (cut, handed_cut):
        job.until_step(7)
        job.stop(0)
    requeued.wait(seconds=120)
    cluster.wait(waits, "COMPLETED", seconds=120)
    for job in (requeued, handed):
        assert job.unbroken(120) and job.verdicts()[-1] == ("finished", "stop"), job.log
        assert {action for _, action in job.verdicts()[:-1]} == {"leave"}
        assert {event["why"] for event in job.events("asked")} == {"time limit"}
    assert {job.by for job in jobs.history(handed.run)[1:]} == {"successor"}
    cut.wait(seconds=120)
    handed_cut.until(lambda: handed_cut.run.finished, "end", seconds=60)
    for job in (cut, handed_cut):
        job.until(lambda job=job: job.verdicts()[-1] == ("finished", "stop"), "last word")
        assert job.unbroken(20) and [event["job_id"] for event in job.events("launched")][0] == job.job_id, job.log
        assert len(job.run.attempts()) == 2 and ("finished", "stop") not in job.verdicts()[:-1], job.log


def test_a_thousand_steps_with_saves_and_evaluations_raise_no_alarm(cluster, steps_job):
    often = ("--save-every", "200", "--save-seconds", "1", "--evaluate-every", "400", "--evaluate-seconds", "8")
    hang = {"seconds": 6, "steps": 10, "other_seconds": 30}  # an evaluation is longer than a silence may be
    job = steps_job(cluster, "long", "--steps", "1000", "--seconds", "0.01", *often, nodes=2, hang=hang)
    job.wait(seconds=110)
    assert job.unbroken(1000) and job.events("hang") == [] and job.verdicts() == [("finished", "stop")]
