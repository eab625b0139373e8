"""Text from outside cannot run a command on the way to a job, and no secret of the shell gets there."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
import yaml

from megavlm.platform.errors import ConfigError
from megavlm.slurm.submit import main

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120)]

# There would be a file named `canary` if any of these were read by a shell.
STRINGS = [
    "two words", "  blanks around  ", "it's", 'say "so"', "'", '"', "\"'\"'", "$(touch canary)", "`touch canary`",
    "a; touch canary", "a && touch canary", "a | tee canary", "> canary", "a\ntouch canary", "a\r\nb", "\ttab",
    "\x1b[31m", "*", "?[a-z]*", "{a,b}", "~", "~root", "$HOME", "${IFS}", "#comment", "a #b", "a#b", "100%", "%j",
    "%%n", "-x", "--wrap=touch canary", "--", "a\\b", "\\", "ends in \\", "a:b", "a=b", "a,b", "!!", "(x)", "<<END",
    "é漢字🙂", "\\$(touch canary)", "'; touch canary #", '"; touch canary #', "\n#SBATCH --nodes=99", "x" * 150,
]  # fmt: skip
# Stands in for the interpreter: tells its arguments, as the job's log.
TELLS = "#!/bin/sh\nprintf '%s\\0' \"$@\"\n"


@pytest.fixture
def told_by_jobs(cluster, steps_worker, monkeypatch):
    """Jobs run a program that tells its arguments instead of the supervisor."""
    program = cluster.shared / "it's the python"
    program.write_text(TELLS)
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.chdir(cluster.shared)


def wait_for_all(cluster, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while waiting := cluster.run("squeue", "--noheader", "--format=%A %T %r"):
        assert time.monotonic() < end, waiting
        time.sleep(0.3)


def test_every_string_is_refused_or_arrives_unchanged(cluster, profile, told_by_jobs, capsys):
    """Each as the job's name, as the run's path and as an argument; what is refused there, as an argument alone."""
    path, sent, refused = str(profile(memory="100M")), {}, []
    for number, text in enumerate(STRINGS):
        run = cluster.shared / "nasty" / str(number) / text
        verb = ["--", "steps", text, f"a.b={text}", "--", text]
        words = ["--cluster", path, "--json", f"--out={run}", f"--name={text}"]
        try:
            assert main([*words, *verb]) == 0
        except ConfigError as error:
            refused.append(text)
            assert error.exit_code == 2 and error.fix and not run.exists()
            capsys.readouterr()
            assert main([*words[:3], f"--out={cluster.shared / 'nasty' / f'argument-{number}'}", *verb]) == 0
        sent[text] = json.loads(capsys.readouterr().out)
    wait_for_all(cluster)
    for text, told in sent.items():
        job = told["jobs"][0]
        log = Path(told["run"]) / "jobs" / job["name"] / f"slurm-{job['job_id']}.log"
        words = log.read_bytes().decode().split("\0")
        wanted = [f"--run={told['run']}", f"--job={job['name']}", "--nodes=1", "--spares=0"]
        assert words[:-1] == ["-m", "megavlm.slurm.supervisor", *wanted, "--", "steps", text, f"a.b={text}", "--", text]
        if text not in refused:
            assert job["name"] == text and Path(told["run"]).name == text
    assert not list(cluster.shared.rglob("canary")) and len(refused) < 12


def test_overrides_stand_in_the_run_folder_as_they_were_given(cluster, profile, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = {f"n{number}": text for number, text in enumerate(STRINGS)}
    overrides = [f"data.sets.{name}={json.dumps(text, ensure_ascii=False)}" for name, text in given.items()]
    path = str(profile(sbatch={"begin": "now+1hour"}))
    words = ["nvlm-d-mini", *overrides, "--stage", "language", "--nodes", "2", "--cluster", path, "--json"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    sets = yaml.safe_load((Path(told["run"]) / "config.yaml").read_text())["data"]["sets"]
    assert given.items() <= sets.items() and not list(tmp_path.rglob("canary"))
    assert not [word for word in told["jobs"][0]["command"] if "n0" in word]
    cluster.clear()


def test_no_secret_of_the_shell_reaches_a_job(cluster, profile, steps_worker, monkeypatch, capsys):
    secrets = {"AWS_SECRET_ACCESS_KEY": "aws-8f3e1c", "HF_TOKEN": "hf-77ab02", "SBATCH_COMMENT": "comment-55c0de"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SITE", "lab")
    run = cluster.shared / "secret"
    path = str(profile(setup=["env", *profile_setup(profile)], pass_environment=["SITE", "UNSET_HERE"]))
    assert main(["--cluster", path, "--json", "--out", str(run), "--", "steps", str(run), "--steps=2"]) == 0
    job = json.loads(capsys.readouterr().out)["jobs"][0]
    assert cluster.wait(job["job_id"], "COMPLETED")["ExitCode"] == "0:0"
    log = cluster.log(job["job_id"])
    assert "\nPATH=" in f"\n{log}" and "SITE=" not in log  # `env` runs before the exports
    assert "export SITE=lab\n" in Path(job["script"]).read_text()
    shown = cluster.run("scontrol", "show", "job", "--details", str(job["job_id"]))
    read = [file.read_bytes() for file in cluster.folder.rglob("*") if file.is_file() and not file.is_symlink()]
    assert len(read) > 100
    for name, value in secrets.items():
        assert value not in shown and name not in log
        assert not [text for text in read if value.encode() in text]


def profile_setup(profile) -> list[str]:
    return yaml.safe_load(profile().read_text())["setup"]


def test_an_images_name_arrives_whole(pyxis_cluster, profile, steps_worker, capsys):
    """sbatch would take what follows a '#' in a script for a comment."""
    shared = pyxis_cluster.shared
    inner, run = shared / "python inside", shared / "run #1"
    inner.write_text(f'#!/bin/sh\nenv > {shared}/"environment"\nexec {sys.executable} "$@"\n')
    inner.chmod(0o755)
    image = "nvcr.io#nvidia/pytorch:25.01-py3"
    container = {"kind": "pyxis", "image": image, "python": str(inner), "mounts": ["/data:/data"]}
    path = str(profile(container=container))
    assert main(["--cluster", path, "--json", "--out", str(run), "--", "steps", str(run), "--steps=1"]) == 0
    told = json.loads(capsys.readouterr().out)
    pyxis_cluster.wait(told["jobs"][0]["job_id"], "COMPLETED")
    seen = (shared / "environment").read_text().splitlines()
    assert f"STANDIN_CONTAINER_IMAGE={image}" in seen
    assert f"STANDIN_CONTAINER_MOUNTS=/data:/data,{run}:{run},{os.getcwd()}:{os.getcwd()}" in seen
