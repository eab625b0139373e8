"""A rank that stands still: found, told where, restarted."""

from __future__ import annotations

import os
import signal

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120)]


def stop(job, rank):
    """SIGSTOP for a rank of the first attempt, from inside of its node."""
    beat = next(beat for beat in job.run.attempts()[0].heartbeats() if beat["rank"] == rank)
    node = job.events("launched")[0]["nodes"][rank]
    words = job.cluster.inside(node, "kill", f"-{signal.SIGSTOP.value}", str(beat["pid"]))
    job.cluster.run(*words) if job.cluster.netns else os.kill(beat["pid"], signal.SIGSTOP)


def test_a_stopped_rank_is_named_and_the_run_goes_on_from_its_last_save(cluster, steps_job):
    flags = ("--steps", "40", "--seconds", "0.2", "--save-every", "5")
    jobs = [steps_job(cluster, f"hang{rank}", *flags, nodes=2) for rank in (0, 1)]
    for rank, job in enumerate(jobs):
        job.until_step(7)
        stop(job, rank)
    for rank, job in enumerate(jobs):
        job.wait(seconds=90)
        assert job.unbroken(40) and job.verdicts() == [("hang", "retry"), ("finished", "stop")]
        (hang,) = job.events("hang")
        assert [one["rank"] for one in hang["suspects"]] == [rank] and hang["step"] >= 7
        assert hang["suspects"][0]["why"] == "stopped"
        if cluster.netns:
            assert hang["suspects"][0]["node"] == job.events("launched")[0]["nodes"][rank]
        stack = job.run.path("attempts", "01", "stacks", f"rank-{1 - rank:05d}.txt").read_text()
        assert "_receive" in stack or "readinto" in stack
