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
    deaf = ("--steps", "35", "--seconds", "2", "--save-every", "5")  # hears of the limit when it is there
    late = steps_job(cluster, "cut-off", *deaf, minutes=1, save_seconds=1)
    requeued.wait(seconds=120)
    cluster.wait(waits, "COMPLETED", seconds=120)
    for job in (requeued, handed):
        assert job.unbroken(120) and job.verdicts()[-1] == ("finished", "stop"), job.log
        assert {action for _, action in job.verdicts()[:-1]} == {"leave"}
        assert {event["why"] for event in job.events("asked")} == {"time limit"}
    assert {job.by for job in jobs.history(handed.run)[1:]} == {"successor"}
    late.wait(seconds=180)
    assert late.unbroken(35) and len(late.run.attempts()) > 1, late.log


def test_a_thousand_steps_with_saves_and_evaluations_raise_no_alarm(cluster, steps_job):
    often = ("--save-every", "200", "--save-seconds", "1", "--evaluate-every", "400", "--evaluate-seconds", "8")
    hang = {"seconds": 6, "steps": 10, "other_seconds": 30}  # an evaluation is longer than a silence may be
    job = steps_job(cluster, "long", "--steps", "1000", "--seconds", "0.01", *often, nodes=2, hang=hang)
    job.wait(seconds=110)
    assert job.unbroken(1000) and job.events("hang") == [] and job.verdicts() == [("finished", "stop")]
