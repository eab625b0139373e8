"""A rank that stands still: found, told where, restarted."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120)]


def test_a_stopped_rank_is_named_and_the_run_goes_on_from_its_last_save(cluster, steps_job):
    flags = ("--steps", "40", "--seconds", "0.2", "--save-every", "5")
    jobs = [steps_job(cluster, f"hang{rank}", *flags, nodes=2) for rank in (0, 1)]
    for rank, job in enumerate(jobs):
        job.until_step(7)
        job.stop(rank)
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
