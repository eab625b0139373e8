"""The throw-away Slurm itself: what the other tests rely on happens there, and the worker keeps the contract."""

from __future__ import annotations

import subprocess

import pytest

from megavlm.slurm.profile import load_profile

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120)]


def test_a_command_runs_on_all_four_nodes(cluster):
    names = cluster.run("srun", "-N4", "sh", "-c", "echo $SLURMD_NODENAME").split()
    assert sorted(names) == cluster.nodes == ["n1", "n2", "n3", "n4"]


def test_a_job_ends_with_the_code_of_its_script(cluster):
    job = cluster.submit(script="echo told; exit 7")
    assert cluster.wait(job, "FAILED")["ExitCode"] == "7:0"
    assert cluster.log(job) == "told\n"


def test_more_gpus_than_a_node_has_are_refused_at_submit(cluster):
    with pytest.raises(subprocess.CalledProcessError) as refused:
        cluster.submit("--gpus-per-node=9", script="true")
    assert "configuration is not available" in refused.value.stderr


def test_a_profile_is_one_that_the_project_reads(profile):
    one = load_profile(str(profile(partition="low", hang={"seconds": 3})))
    assert (one.partition, one.hang.seconds, one.hang.other_seconds) == ("low", 3, 30)
