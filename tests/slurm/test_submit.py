"""`megavlm submit` against a real Slurm: what is refused, what is shown, what is queued."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from megavlm.platform.cli import main as command_line
from megavlm.platform.errors import ConfigError, MegaVLMError, MissingPackage, NotBuiltYet
from megavlm.platform.runs import RunFolder
from megavlm.platform.verbs import VERBS
from megavlm.slurm import jobs
from megavlm.slurm.commands import SlurmError
from megavlm.slurm.profile import load_profile
from megavlm.slurm.submission import Planned, prepare
from megavlm.slurm.submit import main
from megavlm.slurm.work import MAY_CHANGE, Piece, Work

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120)]

LATER = {"sbatch": {"begin": "now+1hour"}, "setup": []}  # jobs stay in the queue, to be looked at
RECIPE = "nvlm-d-mini"


@pytest.fixture
def later(cluster, profile, tmp_path, monkeypatch) -> str:
    """A profile whose jobs do not start; the working folder, the home and the runs' root are the test's own."""
    for name in ("work", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MEGAVLM_RUNS", raising=False)
    return str(profile(**LATER))


def tree(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def queued(cluster) -> list[str]:
    return cluster.run("squeue", "--noheader", "--format=%A").split()


def submit(capsys, *words: str) -> tuple[str, str]:
    assert main(words) == 0
    told = capsys.readouterr()
    return told.out, told.err


@pytest.mark.parametrize(
    ("words", "value", "fix"),
    [
        (["--gpus-per-node", "9"], "9 GPUs per node", "--gpus-per-node 8"),
        (["--partition", "mian"], "no partition 'mian'", "'main'"),
        (["--partition", "short", "--minutes", "11"], "11 minutes", "--minutes 10"),
        (["--nodes", "4", "--spares", "1"], "4 nodes and 1 spares", "at most 4"),
        (["--nodes", "3"], "3 processes (3 nodes x 1) do not divide by tp 2", "--nproc"),
        (["--stage", "sft"], "stage 'sft' needs 'connector'", "--stage connector"),
        (["stages.sft.stepps=3"], "stepps", "steps"),
        (["data.tokenizer=/nowhere"], "/nowhere", ""),
        (["data.sets.text=/nowhere"], "/nowhere", "data.sets.text"),
        (["--out", "/proc/cpuinfo/run"], "/proc/cpuinfo is no folder", "--out"),
        (["--after", "nobody"], "nobody", ""),
    ],
)
def test_what_cannot_run_is_refused_before_the_queue(later, cluster, tmp_path, words, value, fix):
    before = tree(tmp_path)
    for further in ([], ["--dry-run"]):
        with pytest.raises(MegaVLMError) as refused:
            main([RECIPE, "--cluster", later, "--nodes", "2", *words, *further])
        assert refused.value.exit_code == 2
        assert value in refused.value.what and fix in (refused.value.fix or "")
    assert tree(tmp_path) == before and queued(cluster) == []


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--", "stebs"], ConfigError),
        (["--"], ConfigError),
        ([RECIPE, "--", "steps", "x"], ConfigError),
        (["--stage", "sft", "--", "train", "x"], ConfigError),
        (["a.b=c", "--", "train", "x"], ConfigError),
        ([], ConfigError),
    ],
)
def test_what_is_neither_a_recipe_nor_a_verb_is_refused(later, steps_worker, words, error):
    with pytest.raises(error):
        main(["--cluster", later, *words])


def test_a_verb_that_is_not_built_is_refused(later, steps_worker, monkeypatch):
    monkeypatch.setitem(VERBS, "plan", VERBS["plan"]._replace(target=None))  # all of them are built by now
    with pytest.raises(NotBuiltYet):
        main(["--cluster", later, "--", "plan", "x"])


def test_a_dry_run_is_byte_for_byte_what_is_submitted_and_writes_nothing(later, cluster, tmp_path, capsys):
    words = [RECIPE, "--cluster", later, "--nodes", "2", "--minutes", "7"]
    before = tree(tmp_path)
    shown, told = submit(capsys, *words, "--dry-run")
    assert tree(tmp_path) == before and queued(cluster) == []
    assert "to start at" in told and "disk: " in told and "--dependency=afterok:<language>" in told
    as_json = json.loads(submit(capsys, *words, "--dry-run", "--json")[0])
    assert [job["name"] for job in as_json["jobs"]] == ["language", "connector", "sft", "gate"]
    assert [verdict.partition(":")[0] for verdict in as_json["verdicts"]] == ["language", "connector", "sft", "gate"]

    sent = json.loads(submit(capsys, *words, "--json")[0])
    scripts = [Path(job["script"]).read_text() for job in sent["jobs"]]
    assert "".join(scripts) == shown == "".join(job["script"] for job in as_json["jobs"])
    for job, script in zip(sent["jobs"], scripts, strict=True):
        assert (
            cluster.run("scontrol", "write", "batch_script", str(job["job_id"]), "-").rstrip("\0\n") == script.rstrip()
        )
    _check_chain(cluster, sent)
    _check_folder(Path(sent["run"]), tmp_path)
    with pytest.raises(ConfigError, match="does 'language' of this run already"):
        main([*words, "--dry-run"])
    with pytest.raises(ConfigError, match="another 'seed'"):
        main([*words, "seed=2", "--dry-run"])
    cluster.clear()


def _check_chain(cluster, sent: dict) -> None:
    """The gate comes after the stage that it judges, and after the one that it compares that with."""
    ids = {job["name"]: job["job_id"] for job in sent["jobs"]}
    chain = [[], [ids["language"]], [ids["connector"]], [ids["sft"], ids["language"]]]
    assert [job["after"] for job in sent["jobs"]] == chain
    told = {name: cluster.job(job_id) for name, job_id in ids.items()}
    for earlier in ("sft", "language"):
        assert f"afterok:{ids[earlier]}" in told["gate"]["Dependency"]
    assert told["connector"]["KillOInInvalidDependent"] == "Yes" and told["sft"]["TimeLimit"] == "00:07:00"
    assert told["sft"]["JobName"] == "nvlm-d-mini.sft" and told["sft"]["NumNodes"] == "2-2"


def _check_folder(run: Path, tmp_path: Path) -> None:
    assert run == tmp_path / "work" / "runs" / RECIPE
    assert [job.name for job in jobs.history(RunFolder(run))] == ["language", "connector", "sft", "gate"]
    assert load_profile(str(run / "jobs" / "sft" / "cluster.yaml")).minutes == 7
    assert "# recipe nvlm-d-mini" in (run / "config.yaml").read_text()
    assert (next((run / "code").iterdir()) / "megavlm" / "slurm" / "supervisor").is_dir()


def test_only_what_is_left_is_submitted(later, cluster, tmp_path, capsys):
    def finish(name: str) -> None:
        (tmp_path / "run" / "stages" / name).mkdir(parents=True)
        (tmp_path / "run" / "stages" / name / "finished").touch()

    words = [RECIPE, "--cluster", later, "--nodes", "2", "--out", str(tmp_path / "run")]
    finish("language")
    (tmp_path / "run" / "cancelled").touch()
    first = json.loads(submit(capsys, *words, "--stage", "connector", "--json")[0])
    assert not (tmp_path / "run" / "cancelled").exists()
    second = json.loads(submit(capsys, *words, "--stage", "sft", "--json")[0])
    assert second["jobs"][0]["after"] == [first["jobs"][0]["job_id"]]
    cluster.run("scancel", str(second["jobs"][0]["job_id"]))
    for name in ("connector", "sft", "gate"):
        finish(name)
    out, told = submit(capsys, *words, "--json")
    assert json.loads(out)["jobs"] == [] and "nothing to submit" in told
    cluster.clear()


def test_a_run_can_wait_for_another_one(later, cluster, tmp_path, capsys):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    words = ["--cluster", later, "--json", "--out"]
    earlier = json.loads(submit(capsys, *words, str(first), "--", "doctor")[0])["jobs"][0]
    waits = json.loads(submit(capsys, *words, str(second), "--after", str(first), "--", "doctor")[0])["jobs"][0]
    assert waits["after"] == [earlier["job_id"]]
    assert f"afterok:{earlier['job_id']}" in cluster.job(waits["job_id"])["Dependency"]
    cluster.run("scancel", str(earlier["job_id"]))
    cluster.wait(waits["job_id"], "CANCELLED")
    with pytest.raises(ConfigError, match="did not end well: CANCELLED"):
        main([*words, str(third), "--after", str(first), "--", "doctor"])
    RunFolder(first).mark_finished()
    assert (
        json.loads(submit(capsys, *words, str(third), "--after", str(first), "--", "doctor")[0])["jobs"][0]["after"]
        == []
    )
    cluster.clear()


def test_all_jobs_are_queued_or_none(later, cluster, tmp_path):
    work = Work(tmp_path / "run", [Piece(name, ["doctor"]) for name in "abcde"])
    whole = prepare(work, load_profile(later), nodes=1, spares=0, successor=False, after=None)
    planned = [one if one.piece.name != "c" else _impossible(one) for one in whole.planned]
    with pytest.raises(SlurmError, match="job 'c'.*cancelled again: a [0-9]+, b [0-9]+"):
        dataclasses.replace(whole, planned=planned).send(["megavlm", "submit"])
    sent = jobs.history(RunFolder(tmp_path / "run"))
    assert [job.name for job in sent] == ["a", "b"] and queued(cluster) == []
    assert {cluster.job(job.job_id)["JobState"] for job in sent} == {"CANCELLED"}


def _impossible(planned: Planned) -> Planned:
    """The same job on a node that there is not."""
    return dataclasses.replace(planned, text=planned.text.replace("#SBATCH", "#SBATCH --nodelist=n9\n#SBATCH", 1))


def test_a_verb_gets_a_folder_of_its_own_unless_it_has_one(later, cluster, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MEGAVLM_RUNS", "here")
    here = tmp_path / "work" / "here"
    cases = [
        ([], ["doctor"], here / "doctor", "doctor"),
        ([], ["doctor"], here / "doctor-2", "doctor"),
        (["--name", "look around"], ["doctor"], here / "look around", "look around"),
        (["--out", "mine"], ["doctor"], tmp_path / "work" / "mine", "doctor"),
        ([], ["curate", "run", "curate-demo", "--out", "c/d"], tmp_path / "work" / "c" / "d", "curate-run"),
        ([], ["curate", "run", "curate-demo", "--out=e/../f"], tmp_path / "work" / "f", "curate-run"),
    ]
    for own, verb, folder, name in cases:
        sent = json.loads(submit(capsys, "--cluster", later, "--json", *own, "--", *verb)[0])
        assert sent["run"] == str(folder) and [job["name"] for job in sent["jobs"]] == [name]
        assert sent["jobs"][0]["command"] == verb
        script = (folder / "jobs" / name / "sbatch.sh").read_text()
        assert f"export MEGAVLM_RUNS={here}\n" in script and f"#SBATCH --chdir={tmp_path / 'work'}\n" in script
    cluster.clear()


@pytest.mark.parametrize(
    ("keys", "successor"),
    [({}, False), ({"requeue": False}, True), ({"partition": "low"}, False), ({"partition": "lowcancel"}, True)],
)
def test_where_a_job_cannot_be_requeued_it_hands_on(cluster, profile, tmp_path, capsys, keys, successor):
    words = ["--cluster", str(profile(**keys)), "--out", str(tmp_path / "run"), "--dry-run", "--", "doctor"]
    script = submit(capsys, *words)[0]
    assert (" --successor " in script, "--no-requeue" in script) == (successor, successor)


def test_what_only_sbatch_knows_ends_a_dry_run_with_3(cluster, profile, tmp_path, capsys):
    path = profile(sbatch={"nodelist": "n9"})
    assert command_line(["submit", "--cluster", str(path), "--out", str(tmp_path), "--dry-run", "--", "doctor"]) == 3
    told = capsys.readouterr()
    assert told.out.startswith("#!/bin/bash") and "Invalid node name" in told.err


def test_without_slurm_a_dry_run_still_shows_the_script(profile, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ["--cluster", str(profile()), "--out", str(tmp_path / "run"), "--", "doctor"]
    shown, told = submit(capsys, *words[:4], "--dry-run", *words[4:])
    assert shown.startswith("#!/bin/bash") and "unchecked" in told
    with pytest.raises(MissingPackage):
        main(words)


def test_what_a_resume_may_change_is_what_train_lets_it():
    from megavlm.megatron_mm.training.verb import MAY_CHANGE as of_train

    assert of_train == MAY_CHANGE
