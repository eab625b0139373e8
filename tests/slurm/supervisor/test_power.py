"""Nodes that lose their power, and a slurmctld that dies."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(200)]
FLAGS = ("--steps", "60", "--seconds", "0.25", "--save-every", "5")


def test_a_dead_node_is_replaced_in_the_allocation_or_the_job_requeued_without_it(fresh_cluster, steps_job):
    """Slurm notices later than we do, as it does anywhere."""
    conf = fresh_cluster.folder / "slurm.conf"
    conf.write_text(conf.read_text().replace("SlurmdTimeout=9", "SlurmdTimeout=25"))
    fresh_cluster.run("scontrol", "reconfigure")
    spare = steps_job(fresh_cluster, "spare", *FLAGS, nodes=2, spares=1)
    plain = steps_job(fresh_cluster, "plain", *FLAGS, nodes=2)
    for job in (spare, plain):
        job.until_step(7)
    fresh_cluster.kill_node("n2")
    spare.until_step(8, attempt=2)
    first, second = (event for event in spare.events("launched")[:2])
    assert second["nodes"] == ["n1", "n3"] and (second["job_id"], second["restart"]) == (first["job_id"], 0)
    steps = {number: [m["time"] for m in spare.run.metrics() if m["attempt"] == number] for number in (1, 2)}
    assert steps[2][0] - steps[1][-1] < 120
    for job in (spare, plain):
        job.wait(seconds=100)
        assert job.unbroken(60), job.log
    assert spare.verdicts() == [("node failure", "retry"), ("finished", "stop")]
    assert spare.events("judged")[0]["exclude"] == ["n2"]
    assert plain.verdicts()[0] == ("node failure", "leave") and plain.verdicts()[-1] == ("finished", "stop")
    assert "n2" not in plain.events("launched")[-1]["nodes"] and plain.events("launched")[-1]["restart"] >= 1


def test_the_supervisors_own_node_may_die(fresh_cluster, steps_job):
    plain = steps_job(fresh_cluster, "plain", *FLAGS, nodes=2)
    spare = steps_job(fresh_cluster, "spare", *FLAGS, nodes=2, spares=1)
    handed = steps_job(fresh_cluster, "handed", *FLAGS, nodes=2, spares=1, successor=True)
    for job in (plain, spare, handed):
        job.until_step(7)
    fresh_cluster.kill_node("n1")
    for job in (plain, spare):
        job.wait(seconds=100)
    handed.until(lambda: handed.run.finished, "end", seconds=100)
    for job in (plain, spare, handed):
        assert job.unbroken(60) and "n1" not in job.events("launched")[-1]["nodes"]
    assert spare.verdicts() == [("node failure", "leave"), ("finished", "stop")]


def test_slurmctld_may_die_and_come_back(fresh_cluster, steps_job):
    runs = steps_job(fresh_cluster, "runs", *FLAGS, nodes=2)
    ends = steps_job(fresh_cluster, "ends", "--steps", "20", "--seconds", "0.25", nodes=2)
    leaves = steps_job(fresh_cluster, "leaves", *FLAGS, nodes=2)
    crashes = steps_job(fresh_cluster, "crashes", *FLAGS, "--fail", "1@22@1", nodes=2)
    for job in (runs, ends, leaves, crashes):
        job.until_step(2)
    fresh_cluster.kill_controller()
    leaves.run.attempts()[-1].request_save()
    ends.until(lambda: ends.run.finished, "end without slurmctld")
    runs.until_step(30)
    fresh_cluster.start_controller()
    for job in (runs, ends, leaves, crashes):
        job.wait(seconds=100)
    assert all(job.unbroken(60) for job in (runs, leaves, crashes)) and ends.unbroken(20)
    assert runs.verdicts() == ends.verdicts() == [("finished", "stop")]
    assert leaves.verdicts() == [("saved", "leave"), ("finished", "stop")]
    assert crashes.verdicts() == [("crash", "retry"), ("finished", "stop")]
