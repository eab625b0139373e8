"""Attempts that end by themselves, on a real Slurm: all jobs at once, each then awaited."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120)]


def test_what_ends_well_what_is_tried_again_and_what_is_not(cluster, steps_job):
    quick = ("--steps", "9", "--seconds", "0.05", "--save-every", "3")
    done = steps_job(cluster, "done", *quick, nodes=2)
    mended = steps_job(cluster, "mended", *quick, "--fail", "1@4@1", "--fail", "139@7@2", nodes=2)
    killed = steps_job(cluster, "killed", "--fail", "137@0")
    user = steps_job(cluster, "user", "--fail", "2@0")
    check = steps_job(cluster, "check", "--fail", "3@1")
    budget = steps_job(cluster, "budget", *quick, "--fail", "1@4", attempts={"most": 2, "without_progress": 5})
    done.wait()
    assert done.unbroken(9) and done.verdicts() == [("finished", "stop")]
    mended.wait()
    assert mended.unbroken(9) and mended.verdicts() == [("crash", "retry")] * 2 + [("finished", "stop")]
    assert killed.wait("FAILED")["ExitCode"] == "137:0"
    assert killed.verdicts() == [("crash", "retry")] * 2 + [("crash", "stop")]
    reason = killed.events("judged")[-1]["reason"]
    assert "3 attempts in a row saved nothing" in reason and "SIGKILL" in reason and reason in killed.log
    assert user.wait("FAILED")["ExitCode"] == "2:0" and user.verdicts() == [("user error", "stop")]
    assert "failed as told, with 2 at step 0" in user.events("judged")[0]["reason"]
    assert check.wait("FAILED")["ExitCode"] == "3:0" and check.verdicts() == [("a check said no", "stop")]
    assert budget.wait("FAILED")["ExitCode"] == "1:0" and budget.verdicts() == [("crash", "retry"), ("crash", "stop")]
    assert "2 attempts made (attempts.most)" in budget.events("judged")[-1]["reason"]


def test_a_disk_that_fills_up_during_a_save_stops_the_job_and_says_what_to_do(cluster, steps_job):
    if cluster.small_disk is None:
        pytest.skip("only root has a small disk")
    quick = ("--steps", "9", "--seconds", "0.05", "--save-every", "3")
    elsewhere = ("--save-to", str(cluster.small_disk / "there"), "--save-bytes", "9000000")
    words = steps_job(cluster, "words", *quick, *elsewhere)
    inside = steps_job(cluster, "inside", *quick, "--save-bytes", "2500000", root=cluster.small_disk)
    for job in (words, inside):
        assert job.wait("FAILED")["ExitCode"] == "1:0"
    assert words.verdicts() == [("no space", "stop")]
    assert "free space, then `megavlm requeue RUN`" in words.events("judged")[0]["reason"]


def test_a_node_that_an_admin_wants_back_gets_no_further_attempt(fresh_cluster, steps_job):
    quick = ("--steps", "30", "--seconds", "0.2", "--save-every", "3", "--fail", "1@20@1")
    spare = steps_job(fresh_cluster, "spare", *quick, spares=1)
    plain = steps_job(fresh_cluster, "plain", *quick)
    for job in (spare, plain):
        job.until_step(3)
        assert job.events("launched")[0]["nodes"] == ["n1"]
    fresh_cluster.run("scontrol", "update", "nodename=n1", "state=drain", "reason=maintenance")
    for job in (spare, plain):
        job.wait()
        assert job.unbroken(30)
    assert spare.verdicts() == [("crash", "retry"), ("finished", "stop")]
    assert [event["nodes"] for event in spare.events("launched")] == [["n1"], ["n2"]]
    assert plain.verdicts() == [("crash", "leave"), ("finished", "stop")]
    assert plain.events("launched")[1]["nodes"] != ["n1"] and plain.events("launched")[1]["restart"] == 1


def test_a_node_that_fails_its_preflight_is_replaced_or_left(fresh_cluster, steps_job):
    if not fresh_cluster.netns:
        pytest.skip("only nodes in namespaces of their own have a /dev/shm of their own")
    quick = ("--steps", "9", "--seconds", "0.05", "--save-every", "3")
    fresh_cluster.run(*fresh_cluster.inside("n1", "mount", "-t", "tmpfs", "-o", "ro", "tmpfs", "/dev/shm"))
    checked = {"preflight": {"kind": "quick", "seconds": 30}}
    spare = steps_job(fresh_cluster, "spare", *quick, spares=2, **checked)
    plain = steps_job(fresh_cluster, "plain", *quick, nodes=2, **checked)
    for job in (spare, plain):
        job.wait(seconds=90)
        assert job.unbroken(9), job.log
        assert list(job.events("preflight")[0]["bad"]) == ["n1"], job.log
    assert spare.verdicts() == [("finished", "stop")]
    assert [event["nodes"] for event in spare.events("launched")] == [["n2"]]
    assert plain.verdicts() == [("preflight", "leave"), ("finished", "stop")]
    assert "n1" not in plain.events("launched")[0]["nodes"]
    assert fresh_cluster.job(plain.job_id)["ExcNodeList"] == "n1"
