"""The batch script: what it says, and that nothing in it is read in another way than it was meant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megavlm.platform.errors import ConfigError
from megavlm.slurm.profile import ClusterProfile
from megavlm.slurm.script import JobScript, quote, render

BIN = Path(sys.executable).parent


def job(**changes) -> JobScript:
    profile = ClusterProfile(name="here", **changes.pop("profile", {}))
    fields = {
        "run": Path("/runs/a"),
        "name": "sft",
        "profile": profile,
        "nodes": 2,
        "spares": 0,
        "command": ["train", "/runs/a/config.yaml"],
        "code": Path("/runs/a/code/0123"),
        "folder": Path("/work"),
        "python": "/usr/bin/python3",
        "variables": {},
    }
    return JobScript(**{**fields, **changes})


def options(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]


def test_a_script_says_what_was_asked_for():
    asked = {
        "partition": "p",
        "account": "a",
        "qos": "q",
        "gpus_per_node": 8,
        "cpus_per_task": 3,
        "memory": "0",
        "minutes": 90,
        "exclusive": True,
        "save_seconds": 200,
        "setup": ["module load cuda"],
        "environment": {"NCCL_DEBUG": "a b"},
        "sbatch": {"constraint": "h100&ib", "reservation": "night", "contiguous": True, "overcommit": False},
    }
    text = render(job(profile=asked, spares=1, variables={"MEGAVLM_RUNS": "/runs"}))
    wanted = {
        "job-name=a.sft", "chdir=/work", 'output="/runs/a/jobs/sft/slurm-%j.log"', "open-mode=append", "nodes=3",
        "ntasks-per-node=1", "cpus-per-task=24", "gpus-per-node=8", "mem=0", "partition=p", "account=a", "qos=q",
        "time=90", "exclusive", "requeue", "no-kill", "signal=B:USR1@200", 'constraint="h100&ib"', "reservation=night",
        "contiguous",
    }  # fmt: skip
    assert set(options(text)) == wanted and len(options(text)) == len(wanted)
    assert text.splitlines()[-5:] == [
        "module load cuda",
        'export PYTHONPATH=/runs/a/code/0123"${PYTHONPATH:+:$PYTHONPATH}"',
        "export NCCL_DEBUG='a b'",
        "export MEGAVLM_RUNS=/runs",
        "exec /usr/bin/python3 -m megavlm.slurm.supervisor --run=/runs/a --job=sft --nodes=2 --spares=1 -- "
        "train /runs/a/config.yaml",
    ]


def test_little_is_asked_for_where_little_is_said():
    assert {line.partition("=")[0] for line in options(render(job()))} == {
        "job-name", "chdir", "output", "open-mode", "nodes", "ntasks-per-node", "time", "requeue", "signal",
    }  # fmt: skip


def test_where_requeueing_is_forbidden_the_supervisor_is_told():
    text = render(job(successor=True))
    assert "no-requeue" in options(text) and "requeue" not in options(text)
    assert " --successor -- train " in text


def test_a_percent_sign_in_a_path_is_none_of_slurms():
    assert 'output="/runs/100%%j/jobs/sft/slurm-%j.log"' in options(render(job(run=Path("/runs/100%j"))))


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({"name": "a\nb"}, "control character"),
        ({"name": "../b"}, "cannot name a job"),
        ({"name": ".hidden"}, "cannot name a job"),
        ({"name": ""}, "cannot name a job"),
        ({"name": "é" * 101}, "cannot name a job"),
        ({"name": "\udcff"}, "UTF-8"),
        ({"run": Path("/runs/a\\b")}, "'\\'"),
        ({"run": Path("/runs/a:b")}, "':'"),
        ({"run": Path("/runs/a\tb")}, "control character"),
        ({"folder": Path("/w\nork")}, "control character"),
        ({"command": ["train", "\udcff"]}, "UTF-8"),
        ({"profile": {"sbatch": {"output": "x"}}}, "'output'"),
        ({"profile": {"sbatch": {"x y": "x"}}}, "'x y'"),
        ({"profile": {"sbatch": {"-n": "4"}}}, "'-n'"),
    ],
)
def test_what_cannot_arrive_unchanged_is_refused(changes, value):
    with pytest.raises(ConfigError) as refused:
        render(job(**changes))
    assert value in refused.value.what and refused.value.fix


def test_shellcheck_finds_nothing(tmp_path):
    path = tmp_path / "sbatch.sh"
    path.write_text(render(job(run=Path("/runs/it's a run"), variables={"A": "b c"}, profile={"setup": ["set -e"]})))
    done = subprocess.run([BIN / "shellcheck", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), max_size=4))
def test_words_reach_a_program_through_bash_unchanged(words):
    line = " ".join(quote(word) for word in words)
    assert "\n" not in line
    told = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout
    assert told == b"".join(word.encode() + b"\0" for word in words or [""])


def test_bash_reads_the_whole_script_and_execs_one_program(tmp_path):
    stub, canary = tmp_path / "python 3", tmp_path / "canary"
    stub.write_text('#!/bin/sh\nprintf "%s\\0" "$@"; env\n')
    stub.chmod(0o755)
    command = ["steps", f"$(touch {canary})", "a\n#SBATCH --nodes=9", "--", "'", f'"`touch {canary}`', "*", "~", "é"]
    text = render(job(python=str(stub), command=command, variables={"X": f"; touch {canary}"}))
    assert "nodes=9" not in options(text)
    done = subprocess.run(["bash"], input=text, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.split("\0")[6:-1] == ["--", *command]
    assert f"X=; touch {canary}\n" in done.stdout and not canary.exists()
