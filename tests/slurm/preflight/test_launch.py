"""What srun is told: the nodes, the container, the set-up lines; nothing that a shell would read."""

from __future__ import annotations

import subprocess

import pytest

from megavlm.slurm.preflight.launch import Where, environment, node_words, srun, with_setup
from megavlm.slurm.profile import ClusterProfile


def profile(**keys):
    return ClusterProfile(name="test", **keys)


def test_a_job_of_its_own_asks_for_whole_nodes_as_the_profile_says():
    words = srun(profile(partition="big", account="a b", gpus_per_node=8, exclusive=True), [], Where(nodes=4), None)
    assert {"--nodes=4", "--ntasks=4", "--partition=big", "--account=a b", "--gpus-per-node=8", "--exclusive"} <= {
        *words
    }
    assert not any(word.startswith("--nodelist") for word in words)


def test_inside_a_job_its_nodes_are_used_beside_what_runs():
    words = srun(profile(partition="big", gpus_per_node=8), ["n1", "n2"], Where(), "17")
    assert {"--jobid=17", "--overlap", "--nodelist=n1,n2"} <= {*words}
    assert not any(word.startswith(("--partition", "--gpus")) for word in words)


def test_another_partition_than_the_profiles():
    words = srun(profile(partition="big"), [], Where(partition="small", nodes=1), None)
    assert "--partition=small" in words and "--partition=big" not in words


def test_what_the_profile_says_of_which_nodes_goes_along():
    words = srun(profile(sbatch={"constraint": "h100", "comment": "x", "reservation": "r"}), [], Where(nodes=1), None)
    assert {"--constraint=h100", "--reservation=r"} <= {*words} and not any("comment" in word for word in words)


def test_a_container_is_told_to_srun_or_put_around_the_command(tmp_path):
    pyxis = profile(container={"kind": "pyxis", "image": "nvcr.io#nvidia/pytorch:x", "python": "python3.11"})
    assert "--container-image=nvcr.io#nvidia/pytorch:x" in srun(pyxis, ["n1"], Where(), "1")
    assert node_words(pyxis, tmp_path, full=True)[0] == "python3.11"
    apptainer = profile(container={"kind": "apptainer", "image": "x.sif"})
    assert node_words(apptainer, tmp_path, full=False)[:2] == ["apptainer", "exec"]


@pytest.mark.parametrize("word", ["a b", "$(touch x)", "'; touch x", '"', "a\nb", "`touch x`"])
def test_set_up_lines_run_first_and_words_arrive_as_they_are(tmp_path, word):
    words = with_setup(profile(setup=["export SAID='it is set'"]), ["printf", "%s|%s", word])
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=True)
    assert done.stdout == f"{word}|" and list(tmp_path.iterdir()) == []
    shown = subprocess.run([*words[:-3], "printenv", "SAID"], capture_output=True, text=True, timeout=60)
    assert shown.stdout == "it is set\n"


def test_no_secret_of_the_shell_reaches_the_nodes(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "s3cr3t")
    monkeypatch.setenv("WANTED", "yes")
    given = environment(profile(environment={"NCCL_DEBUG": "WARN"}, pass_environment=["WANTED"]))
    assert "s3cr3t" not in given.values() and given["NCCL_DEBUG"] == "WARN" and given["WANTED"] == "yes"
