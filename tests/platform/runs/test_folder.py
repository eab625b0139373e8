from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from megavlm.platform.config.tree import leaves, parse_yaml
from megavlm.platform.errors import ConfigError, InputError, SavedResumable
from megavlm.platform.runs import RunFolder, all_runs, default_runs_root, find_run
from megavlm.platform.runs.lines import append_line, read_lines
from megavlm.platform.runs.resolved import to_yaml

CONFIG = {"name": "mini", "seed": 1, "stages": {"sft": {"steps": 50, "parallel": {"tp": 1}}}}
ORIGINS = {"name": "recipe mini", "stages.sft.steps": "command line", "seed": "default"}


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "mini", CONFIG, ORIGINS, ["megavlm", "train", "a name.yaml"])


def test_a_new_run_holds_its_configuration_with_origins_and_its_provenance(run):
    text = run.path("config.yaml").read_text()
    assert yaml.safe_load(text) == CONFIG == run.config()
    assert "steps: 50  # command line" in text
    assert "seed: 1\n" in text  # a default is not marked
    provenance = json.loads(run.path("provenance.json").read_text())
    assert provenance["command"] == "megavlm train 'a name.yaml'"
    assert provenance["origins"] == {"name": "recipe mini", "stages.sft.steps": "command line"}
    assert not run.finished and run.saved is None


def test_the_same_configuration_takes_up_the_run_and_another_is_refused(run):
    again = RunFolder.create(run.root, CONFIG, ORIGINS, ["other"])
    assert "a name.yaml" in again.path("provenance.json").read_text()
    other = {**CONFIG, "seed": 2}
    with pytest.raises(ConfigError, match="another 'seed'"):
        RunFolder.create(run.root, other, ORIGINS, [])
    assert run.config() == CONFIG


def test_a_resume_may_change_what_the_caller_allows(run):
    other = {**CONFIG, "stages": {"sft": {"steps": 50, "parallel": {"tp": 2}}}}
    RunFolder.create(run.root, other, ORIGINS, [], may_change=["stages.*.parallel.*"])
    assert run.config() == other


def test_open_needs_a_run(tmp_path, run):
    assert RunFolder.open(run.root).name == "mini"
    with pytest.raises(InputError, match="no run folder"):
        RunFolder.open(tmp_path)


def test_runs_are_found_by_path_and_by_name(tmp_path, run, monkeypatch):
    monkeypatch.setenv("MEGAVLM_RUNS", str(tmp_path))
    assert default_runs_root() == tmp_path
    assert find_run("mini").root == run.root
    assert find_run(str(run.root)).root == run.root
    with pytest.raises(InputError) as error:
        find_run("mino")
    assert error.value.fix == "did you mean 'mini'?"


@pytest.mark.parametrize("parts", [("..",), ("a", "..", "..", "b"), ("/etc/passwd",)])
def test_no_path_leaves_the_folder(run, parts):
    with pytest.raises(InputError, match="leaves the run folder"):
        run.path(*parts)


def test_a_link_out_of_the_folder_is_no_way_out(run, tmp_path):
    (run.root / "out").symlink_to(tmp_path)
    with pytest.raises(InputError):
        run.path("out", "secret")


def test_attempts_are_numbered_and_a_new_one_forgets_the_saved_mark(run):
    first = run.new_attempt()
    run.mark_saved(step=7)
    assert run.saved == 7
    second = run.new_attempt()
    assert (first.root.name, second.root.name) == ("01", "02")
    assert run.saved is None
    assert [attempt.number for attempt in run.attempts()] == [1, 2]
    assert second.log_path(3).name == "rank-00003.log" and second.logs.is_dir()


def test_the_attempt_that_a_launcher_made_is_taken_by_the_run_it_belongs_to_and_by_no_other(run, tmp_path, monkeypatch):
    made = run.new_attempt()
    monkeypatch.setenv("MEGAVLM_ATTEMPT", str(made.root.resolve()))
    run.mark_saved(step=7)
    assert run.new_attempt().root.resolve() == made.root.resolve() == run.current_attempt().root
    assert run.saved is None and len(run.attempts()) == 1
    other = RunFolder.create(tmp_path / "other", CONFIG, ORIGINS, [])
    assert other.new_attempt().root.parent == other.root / "attempts"
    monkeypatch.delenv("MEGAVLM_ATTEMPT")
    assert run.new_attempt().number == 2 == run.current_attempt().number


def test_there_is_no_current_attempt_before_the_first(run):
    with pytest.raises(InputError, match="no attempt"):
        run.current_attempt()


def test_a_run_that_was_only_submitted_is_a_run(tmp_path, run, monkeypatch):
    monkeypatch.setenv("MEGAVLM_RUNS", str(tmp_path))
    (tmp_path / "waiting").mkdir()
    (tmp_path / "waiting" / "jobs.jsonl").write_text("{}\n")
    (tmp_path / "no-run").mkdir()
    assert [each.name for each in all_runs()] == ["mini", "waiting"]
    assert find_run("waiting").root == tmp_path / "waiting"


def test_attempts_count_on_past_ninety_nine(run):
    (run.root / "attempts" / "99").mkdir(parents=True)
    (run.root / "attempts" / "100").mkdir()
    assert run.new_attempt().number == 101
    assert [attempt.number for attempt in run.attempts()] == [99, 100, 101]


def test_an_attempt_tells_how_it_ended(run):
    with run.new_attempt() as attempt:
        attempt.event("stage", name="sft")
    assert [event["kind"] for event in attempt.events()] == ["started", "stage", "ended"]
    assert attempt.events()[0]["pid"] == os.getpid()
    assert attempt.events()[-1]["exit_code"] == 0
    with pytest.raises(SavedResumable), run.new_attempt() as attempt:
        raise SavedResumable("saved at step 3")
    assert attempt.events()[-1] | {"time": 0} == {
        "time": 0, "kind": "ended", "exit_code": 4, "error": "SavedResumable: saved at step 3",
    }  # fmt: skip


def test_heartbeats_replace_each_other(run):
    attempt = run.new_attempt()
    assert attempt.heartbeats() == []
    for step in (1, 2):
        attempt.heartbeat(rank=1, step=step)
    attempt.heartbeat(rank=0, step=2)
    assert [(beat["rank"], beat["step"]) for beat in attempt.heartbeats()] == [(0, 2), (1, 2)]
    assert abs(attempt.heartbeats()[0]["time"] - time.time()) < 60


def test_metrics_survive_a_torn_last_line(run):
    run.append_metrics({"step": 1, "loss": 2.5})
    with run.path("metrics.jsonl").open("a") as out:
        out.write('{"step": 2, "lo')
    assert run.metrics() == [{"step": 1, "loss": 2.5}]
    run.append_metrics({"step": 2, "loss": 2.25})
    assert run.metrics() == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.25}]


def test_repeated_steps_count_once_when_asked(run):
    for step, loss in [(1, 3.0), (2, 2.0), (2, 1.5), (3, 1.0)]:
        run.append_metrics({"stage": "a", "step": step, "loss": loss})
    assert [line["loss"] for line in run.metrics(unique=("stage", "step"))] == [3.0, 1.5, 1.0]
    assert len(run.metrics()) == 4


def test_a_loss_that_is_no_number_is_not_written_as_one(run):
    with pytest.raises(ValueError):
        run.append_metrics({"loss": float("nan")})
    assert run.metrics() == []


def test_finished_stays(run):
    run.mark_finished()
    assert RunFolder.open(run.root).finished


def test_lines_of_several_processes_do_not_mix(tmp_path):
    path = tmp_path / "events.jsonl"
    code = (
        "import sys; from pathlib import Path; from megavlm.platform.runs.lines import append_line\n"
        "for i in range(200): append_line(Path(sys.argv[1]), {'who': sys.argv[2], 'i': i, 'pad': 'x' * 500})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), who]) for who in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    lines = read_lines(path)
    whole = [line for line in path.read_bytes().split(b"\n") if line]
    assert len(lines) == len(whole) == 400
    assert [line["i"] for line in lines if line["who"] == "a"] == list(range(200))


@given(st.binary(max_size=40).filter(lambda tail: b"\n" not in tail))
def test_any_torn_tail_spoils_only_itself(tmp_path_factory, tail):
    path = tmp_path_factory.mktemp("lines") / "metrics.jsonl"
    append_line(path, {"step": 1})
    with path.open("ab") as out:
        out.write(tail)
    append_line(path, {"step": 2})
    steps = [line["step"] for line in read_lines(path) if "step" in line]
    assert steps[0] == 1 and steps[-1] == 2


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
keys = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
values = st.recursive(
    scalars | st.lists(scalars, max_size=3),
    lambda inner: (
        st.dictionaries(keys, inner, max_size=3) | st.lists(st.dictionaries(keys, inner, max_size=2), max_size=2)
    ),
    max_leaves=12,
)


@given(st.dictionaries(keys, values, max_size=4), st.text(max_size=10))
def test_a_written_configuration_reads_back_equal(config, origin):
    text = to_yaml(config, {key: origin for key, _ in leaves(config)})
    assert (parse_yaml(text, where="test") or {}) == config
