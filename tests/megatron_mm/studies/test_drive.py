"""Driving a study: nothing is done twice, what fails stops nobody, what variants have in common is done once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megavlm.megatron_mm.studies.drive import drive, only_driver, passing_on, reason
from megavlm.megatron_mm.studies.find import find_study
from megavlm.megatron_mm.studies.runs import all_runs
from megavlm.megatron_mm.studies.shared import Sharing, stage_key
from megavlm.megatron_mm.studies.verb import run_main
from megavlm.platform.config import load_recipe
from megavlm.platform.errors import ConfigError, MegaVLMError, SavedResumable
from megavlm.platform.executor import TaskResult
from megavlm.platform.runs import RunFolder, SaveRequest

Write = Callable[[dict[str, Any]], Path]
# Ends while it is packed, in a second: an epoch of a tenth of the set makes one batch, and three are needed.
TOO_FEW = [
    "stages.language.mixture.weights=null",
    "stages.language.mixture.sets={text: {epochs: 0.1}}",
]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start("study", ...)`: the command line as a process; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def make(*words: str) -> subprocess.Popen[str]:
        command, pipe = [sys.executable, "-m", "megavlm.platform.cli", *words], subprocess.PIPE
        env = os.environ | {"OMP_NUM_THREADS": "1", "MEGAVLM_QUIET": "1"}
        started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env))
        return started[-1]

    yield make
    for process in started:
        process.kill()
        process.communicate()


def until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def steps(run: RunFolder) -> dict[tuple[str, int], tuple[float, float]]:
    lines = run.metrics(unique=("stage", "step")) if run.path("metrics.jsonl").exists() else []
    return {(line["stage"], line["step"]): (line["loss"], line["grad_norm"]) for line in lines}


@pytest.mark.multiprocess
@pytest.mark.timeout(280)
def test_killed_and_gone_on_with(
    study_tree: dict[str, Any], write_study: Write, start: Start, tmp_path: Path, pretend: Callable[..., None]
) -> None:
    one, two = study_tree["variants"]
    path = write_study(study_tree | {"variants": [one, {"name": "bad", "overrides": TOO_FEW}, two], "reference": "two"})
    out = tmp_path / "out"
    runs = {run.variant: run for run in all_runs(find_study(str(path)).study, out)}
    words = ["study", "run", str(path), "--out", str(out), "--json", "executor.workers=2"]

    alone = tmp_path / "alone"  # variant two by itself, all of it: the truth for what it takes over from variant one
    apart = start("train", runs["two"].base, *runs["two"].overrides, "--out", str(alone), "--json")
    process = start(*words)
    until(lambda: bool(runs["two"].folder.attempts()), process)  # it has begun
    assert runs["one"].finished
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = (out / "runs/one/seed-1/metrics.jsonl").read_bytes()

    process = start(*words)
    told = json.loads(process.communicate(timeout=150)[0])
    assert process.returncode == 1  # of the variant that cannot be trained
    rows = {row["variant"]: row for row in told["rows"]}
    assert {name: row["state"] for name, row in rows.items()} == {"one": "finished", "bad": "failed", "two": "finished"}
    assert "global batches" in rows["bad"]["reasons"]["1"] and rows["bad"]["scores"] == {}
    assert "bad, seed 1, failed: " in (out / "table.md").read_text()

    assert (out / "runs/one/seed-1/metrics.jsonl").read_bytes() == before
    assert len(runs["one"].folder.attempts()) == 1 and len(RunFolder(out).attempts()) == 2
    taken = json.loads((out / "runs/two/seed-1/stages/language/from.json").read_text())
    assert taken == {"run": str(runs["one"].folder.root.resolve())}

    assert apart.wait(timeout=100) in {0, 3, 5}
    assert steps(runs["two"].folder) == steps(RunFolder(alone)) and len(steps(RunFolder(alone))) == 7
    answers = [root / "predictions/sft/vqa.jsonl" for root in (alone, runs["two"].folder.root)]
    assert answers[0].read_bytes() == answers[1].read_bytes()
    assert rows["one"]["scores"]["vqa"]["items"] == 30 and rows["one"]["scores"]["vqa"]["difference"]["items"] == 30


def test_what_fails_stops_no_other_and_is_tried_again(
    study_tree: dict[str, Any], write_study: Write, tmp_path: Path, pretend: Callable[..., None], capsys: Any
) -> None:
    fails = [{"name": name, "overrides": [*TOO_FEW, f"stages.language.steps={n}"]} for name, n in (("a", 4), ("b", 5))]
    changes = {"variants": [*fails, study_tree["variants"][1]], "executor": {"name": "in_process"}, "equal": []}
    path, out = write_study(study_tree | changes), tmp_path / "out"
    pretend(all_runs(find_study(str(path)).study, out)[-1], right=[True, False], losses=[1.0])
    for attempt in (1, 2):
        assert run_main([str(path), "--out", str(out), "--json"]) == 1
        rows = json.loads(capsys.readouterr().out)["rows"]
        assert [row["state"] for row in rows] == ["failed", "failed", "finished"]
        assert all("make 1 global batches" in row["reasons"]["1"] for row in rows[:2])
        assert len(RunFolder(out / "runs/a/seed-1").attempts()) == attempt
    assert run_main([str(path), "--out", str(out), "--variant", "two", "--json"]) == 1
    assert [row["variant"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["a", "b", "two"], (
        "all with a folder"
    )


def test_a_wish_to_stop_reaches_the_trainings_at_work(
    study_tree: dict[str, Any], write_study: Write, tmp_path: Path
) -> None:
    runs = all_runs(find_study(str(write_study(study_tree))).study, tmp_path / "out")
    at_work = [run.folder.new_attempt() for run in runs]
    with SaveRequest() as request, passing_on(request, runs):
        assert not any(attempt.save_requested for attempt in at_work)
        os.kill(os.getpid(), signal.SIGUSR1)
        deadline = time.monotonic() + 20
        while not all(attempt.save_requested for attempt in at_work):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_who_is_asked_to_stop_begins_nothing_more(
    study_tree: dict[str, Any], write_study: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, folder = find_study(str(write_study(study_tree))).study, RunFolder(tmp_path / "out")
    runs, attempt = all_runs(study, folder.root), folder.new_attempt()
    attempt.request_save()
    monkeypatch.setenv("MEGAVLM_ATTEMPT", str(attempt.root))
    with pytest.raises(SavedResumable):
        drive(folder, study, runs, Sharing(runs))
    assert not any(run.folder.attempts() for run in runs)


def test_two_drivers_do_not_share_a_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out")
    with only_driver(folder), pytest.raises(MegaVLMError, match="another `megavlm study run`"), only_driver(folder):
        pass


def test_several_machines_are_refused(monkeypatch: pytest.MonkeyPatch, study_tree: Any, write_study: Write) -> None:
    for name, value in {"MEGAVLM_NODES": "2", "MEGAVLM_NODE_RANK": "1", "MEGAVLM_RENDEZVOUS": "a:1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="one machine"):
        run_main([str(write_study(study_tree))])


@pytest.mark.parametrize(
    ("log", "code", "told"),
    [
        ('noise\n{"error": {"what": "steps 5", "where": "stages.a", "fix": "4"}}\n', 2, "steps 5 (stages.a)"),
        ('{"error": {"what": "steps 5", "where": null, "fix": null}}\n', 2, "steps 5"),
        ("a traceback\nKeyError: 3\n", 1, "KeyError: 3"),
        ("step 3\n", -9, "killed by signal 9"),
        ("", 7, "exit code 7"),
    ],
)
def test_the_reason_of_a_failure(log: str, code: int, told: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(log)
    assert reason(TaskResult(["train"], code, 1.0, tmp_path / "log")) == told


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("stages.sft.steps=9", True),  # comes later
        ("stages.sft.mixture.weights={text: 1}", True),
        ("stages.language.optional=true", True),  # says when, not what
        ("data.sets.vqa=/elsewhere", True),  # a set that this stage never opens
        ("seed=6", False),
        ("stages.language.steps=9", False),
        ("stages.language.evaluate.text=null", False),
        ("stages.language.parallel.tp=2", False),
        ("data.sets.text=/elsewhere", False),
        ("data.template={name: chatml, system: Answer.}", False),
        ("model.tiling.max_tiles=1", False),
        ("model.decoder.layers=3", False),
    ],
)
def test_a_stage_is_common_only_where_all_that_decides_it_is(
    override: str, same: bool, study_tree: dict[str, Any]
) -> None:
    base, words = study_tree["recipe"], study_tree["overrides"]
    plain, changed = (load_recipe(base, [*words, *more]) for more in ([], [override]))
    assert (stage_key(plain, "language") == stage_key(changed, "language")) == same
    if not same:
        assert stage_key(plain, "sft") != stage_key(changed, "sft"), "it comes after"


def test_only_what_is_finished_and_as_it_says_is_taken_over(
    study_tree: dict[str, Any], write_study: Write, tmp_path: Path, pretend: Callable[..., None]
) -> None:
    one, two = all_runs(find_study(str(write_study(study_tree))).study, tmp_path / "out")
    sharing = Sharing([one, two])
    assert [[run.variant for run in wave] for wave in sharing.waves([one, two])] == [["one"], ["two"]]
    assert sharing.take_over(two) == []  # variant one has not begun
    pretend(one, right=[True, False], losses=[1.0])
    config = one.folder.path("config.yaml")
    text = config.read_text()
    config.write_text(text.replace("seed: 1", "seed: 2"))
    assert sharing.take_over(two) == []  # it was another one's
    config.write_text(text)
    assert sharing.take_over(two) == ["language"] and not two.finished
    assert sorted(steps_of(two.folder)) == [("language", k) for k in (1, 2, 3)]
    packs = [run.folder.path("stages/language/packs/manifest.json") for run in (one, two)]
    assert packs[0].samefile(packs[1])  # no second copy
    assert sharing.take_over(two) == []  # once


def steps_of(run: RunFolder) -> set[tuple[str, int]]:
    return {(line["stage"], line["step"]) for line in run.metrics()}
