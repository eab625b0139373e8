"""Attempts that end by themselves, on a real Slurm."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120)]


def test_ends(cluster, steps_job):
    done = steps_job(cluster, "done", "--steps", "9", "--seconds", "0.05", "--save-every", "3", nodes=2)
    crash = steps_job(cluster, "crash", "--steps", "9", "--seconds", "0.05", "--fail", "137@0")
    user = steps_job(cluster, "user", "--fail", "2@0")
    done.wait()
    assert done.unbroken(9) and done.verdicts() == [("finished", "stop")]
    assert crash.wait("FAILED")["ExitCode"] == "137:0"
    print(crash.events("judged"), user.events("judged"), done.log, crash.log)
    assert crash.verdicts() == [("crash", "retry")] * 2 + [("crash", "stop")]
    assert user.wait("FAILED")["ExitCode"] == "2:0" and user.verdicts() == [("user error", "stop")]
