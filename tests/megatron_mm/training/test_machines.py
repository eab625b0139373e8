"""What several machines of one training agree on, without starting any."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import time
from pathlib import Path

import pytest

from megavlm.megatron_mm.training import watch
from megavlm.megatron_mm.training.launch import shared_attempt
from megavlm.megatron_mm.training.lock import exclusive
from megavlm.megatron_mm.training.plan import make_plan
from megavlm.megatron_mm.training.pulse import Pulse
from megavlm.megatron_mm.training.verb import main as train
from megavlm.platform.config import load_recipe
from megavlm.platform.errors import ConfigError, MegaVLMError
from megavlm.platform.nodes import COUNT, MEETING
from megavlm.platform.nodes import RANK as NODE
from megavlm.platform.runs import RunFolder
from megavlm.platform.runs.attempt import VARIABLE


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", {}, {}, [])


def test_a_plan_for_several_machines(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(recipe), "--out", str(tmp_path / "run"), "--dry-run", "--json"]
    assert train([*words, "--nodes", "2", "--nproc", "2"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["world"], plan["nodes"], plan["nproc"]) == (4, 2, 2)
    assert [stage["dp"] for stage in plan["stages"]] == [2, 2, 2]
    assert train([*words, "--nodes", "2"]) == 0  # tp 2 over both: one process each will do
    assert json.loads(capsys.readouterr().out)["nproc"] == 1


def test_the_environment_says_how_many_machines(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {COUNT: "4", NODE: "1", MEETING: "n1:4000"}.items():
        monkeypatch.setenv(name, value)
    overrides = ["stages.language.mixture.packs_per_batch=4", "stages.sft.mixture.packs_per_batch=4"]
    assert train([str(recipe), *overrides, "--out", str(tmp_path / "run"), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nodes"] == 4
    with pytest.raises(ConfigError, match="--nodes 2 plans, and starts nothing elsewhere"):
        train([str(recipe), "--out", str(tmp_path / "run"), "--nodes", "2"])
    with pytest.raises(ConfigError, match=f"{VARIABLE}= is no attempt of"):
        train([str(recipe), *overrides, "--out", str(tmp_path / "run")])


@pytest.mark.parametrize(("nodes", "nproc", "fix"), [(3, 3, "--nproc 2"), (5, 1, "--nproc 2")])
def test_processes_that_do_not_divide(recipe: Path, nodes: int, nproc: int, fix: str) -> None:
    said = rf"{nodes * nproc} processes \({nodes} nodes x {nproc}\) do not divide by tp 2 x pp 1 x cp 1 = 2"
    with pytest.raises(ConfigError, match=said) as raised:
        make_plan(load_recipe(str(recipe)), nproc=nproc, nodes=nodes)
    assert fix in str(raised.value)


def test_what_is_missing_here_may_be_there(recipe: Path) -> None:
    fp8 = ["stages.sft.precision=fp8", "model.decoder.ffn=64"]
    plan = make_plan(load_recipe(str(recipe), fp8), nodes=2, elsewhere=True)
    assert any("needs Transformer Engine" in note for note in plan.notes)
    with pytest.raises(ConfigError, match=r"fp8: model.decoder.ffn 48 / tp 2 = 24 is no multiple of 16"):
        make_plan(load_recipe(str(recipe), fp8[:1]), nodes=2, elsewhere=True)
    with pytest.raises(ConfigError, match=r"fp8: stages.sft.mixture.sequence_length 100 is no multiple of 16"):
        make_plan(load_recipe(str(recipe), [*fp8, "stages.sft.mixture.sequence_length=100"]), elsewhere=True)


def test_a_folder_that_cannot_be_written(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file is no folder"):
        train([str(recipe), "--out", str(tmp_path / "file" / "run"), "--dry-run"])


def test_the_attempt_that_machines_share(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = run.new_attempt(), run.new_attempt()
    monkeypatch.setenv(VARIABLE, str(first.root))
    assert shared_attempt(run).number == 1 and second.number == 2
    monkeypatch.setenv(VARIABLE, str(tmp_path / "other" / "attempts" / "01"))
    with pytest.raises(ConfigError, match="is no attempt of"):
        shared_attempt(run)


def test_a_pulse_beats_at_changes_and_now_and_then(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt, now = run.new_attempt(), 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pulse = Pulse(attempt, rank=3, ranks=1000)
    assert pulse.seconds == 20  # a thousand ranks together: 50 a second
    told = []
    for doing, step, wait in [("start", None, 0), ("step", 7, 0), ("step", 8, 19), ("step", 9, 2), ("save", None, 0)]:
        now += wait
        pulse(doing, step)
        (beat,) = attempt.heartbeats()
        told.append((beat["rank"], beat["doing"], beat["step"]))
    assert told == [(3, "start", 0), (3, "step", 7), (3, "step", 7), (3, "step", 9), (3, "save", 9)]


def test_no_machine_waits_for_one_that_failed(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt, now = run.new_attempt(), 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    leader, other = watch.Watch(attempt, ("failed",), 2), watch.Watch(attempt, ("failed", "ended"), 2)
    attempt.event("saved", step=3)
    now += watch.LOOK_SECONDS
    assert not leader.over() and not other.over()
    attempt.event("ended", exit_code=4)
    for _ in range(2):
        now += watch.LOOK_SECONDS + watch.GRACE_SECONDS
        told = leader.over(), other.over()
    assert told == (False, True) and other.ended_well()
    attempt.event("ended", exit_code=1)
    assert not other.ended_well()


def _hold(path: Path, host: str, job: str, ready: multiprocessing.synchronize.Event) -> None:
    """What a process on another machine looks like from here: the lock is taken, and its holder is not of this host."""
    os.environ["SLURM_JOB_ID"] = job
    socket.gethostname = lambda: host
    with exclusive([path]):
        ready.set()
        time.sleep(60)


def test_a_lock_left_on_a_dead_machine_does_not_stop_its_own_job(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, context = run.path("stages", "sft", "lock"), multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(path, "lost", "77", ready), daemon=True)
    holder.start()
    try:
        assert ready.wait(20)
        monkeypatch.setenv("SLURM_JOB_ID", "78")  # another job: it waits, and then says who
        with pytest.raises(MegaVLMError, match=f"process {holder.pid} on lost"), exclusive([path], wait=1.0):
            pass
        monkeypatch.setenv("SLURM_JOB_ID", "77")  # the same, started again elsewhere
        with exclusive([path]):
            assert json.loads(path.read_text())["pid"] == os.getpid()
            with pytest.raises(MegaVLMError, match="is at work"), exclusive([path], wait=0.0):
                pass
    finally:
        holder.kill()
        holder.join()


def test_a_lock_is_waited_for_when_its_machine_is_another(run: RunFolder) -> None:
    path, context = run.path("stages", "sft", "lock"), multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(path, "lost", "77", ready), daemon=True)
    holder.start()
    assert ready.wait(20)
    holder.kill()  # as when the server learns that the machine is gone
    with exclusive([path], wait=20.0):
        holder.join()
