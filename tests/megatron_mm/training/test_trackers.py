"""Figures in other places: TensorBoard's files read back, W&B without a network, and one that fails."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megavlm.megatron_mm.backend.adam import CpuFusedAdam
from megavlm.megatron_mm.training.checks import check_trackers
from megavlm.megatron_mm.training.engine import optimizer_name, tell_engine
from megavlm.megatron_mm.training.loop import StageTrainer
from megavlm.platform.config import Config, load_recipe
from megavlm.platform.errors import ConfigError, MissingPackage
from megavlm.platform.runs import RunFolder

Open = Callable[..., StageTrainer]


class Unreachable(Config):
    """A third party's tracker whose service goes away."""

    name: str = f"{__name__}:Unreachable"

    def check(self) -> None:
        """Always there."""

    def open(self, run: RunFolder, stage: str, step: int) -> Unreachable:
        """Itself."""
        return self

    def log(self, step: int, values: dict[str, float]) -> None:
        """Works once."""
        if step > 1:
            raise ConnectionError("gone")

    def close(self) -> None:
        """Nothing to close."""


def test_tensorboard_has_every_figure_and_hides_what_was_done_again(open_trainer: Open) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ["run.trackers=[tensorboard]", "stages.language.checkpoint.every=4"]
    trainer = open_trainer(*words)

    def fail(module: torch.nn.Module, inputs: object) -> None:
        if trainer.step == 5:
            raise KeyboardInterrupt

    trainer.model.stages[0].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert open_trainer(*words).train()
    run = trainer.session.run
    lines = {line["step"]: line for line in run.metrics(unique=("stage", "step"))}
    found = EventAccumulator(str(run.path("tensorboard", "language"))).Reload()
    for name in ("loss", "grad_norm", "lr", "tokens_per_second_per_device", "padding", "memory"):
        scalars = found.Scalars(name)
        assert [scalar.step for scalar in scalars] == [1, 2, 3, 4, 5, 6]
        for scalar in scalars:
            assert scalar.value == pytest.approx(lines[scalar.step][name], rel=1e-6)
    assert "stage" not in found.Tags()["scalars"] and "mfu" not in found.Tags()["scalars"]


def test_wandb_offline(open_trainer: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    trainer = open_trainer("run.trackers=[{name: wandb, project: tiny}]")
    assert trainer.train()
    run = trainer.session.run
    assert [event for event in trainer.session.attempt.events() if event["kind"] == "tracker_failed"] == []
    (written,) = run.path("wandb").glob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 20  # its own process writes it
    while b"grad_norm" not in written.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    kept = [path for path in run.root.rglob("*") if path.is_file()]
    assert all(b"0123456789abcdef0123456789abcdef01234567" not in path.read_bytes() for path in kept)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_package_that_is_missing_is_named_before_anything_starts(recipe: Path, name: str) -> None:
    told = load_recipe(str(recipe), [f"run.trackers=[{name}]"])
    if importlib.util.find_spec(name):
        check_trackers(told)
        return
    with pytest.raises(MissingPackage, match=f"needs the package '{name}'") as error:
        check_trackers(told)
    assert f"pip install {name}" in error.value.fix


def test_an_unknown_tracker(recipe: Path) -> None:
    with pytest.raises(ConfigError, match="unknown tracker 'tensorbord'") as error:
        load_recipe(str(recipe), ["run.trackers=[tensorbord]"])
    assert "tensorboard" in error.value.fix
    check_trackers(load_recipe(str(recipe)))


def test_one_that_fails_is_left_out_and_training_goes_on(open_trainer: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "unreachable", sys.modules[__name__])
    trainer = open_trainer("run.trackers=['unreachable:Unreachable']")
    assert trainer.train()
    told = [event for event in trainer.session.attempt.events() if event["kind"] == "tracker_failed"]
    assert [(event["what"]) for event in told] == ["ConnectionError: gone"]


def test_who_made_the_optimizer(open_trainer: Open, capsys: pytest.CaptureFixture[str]) -> None:
    weight = [torch.nn.Parameter(torch.ones(1))]
    assert optimizer_name(CpuFusedAdam(weight)) == "MegaVLM CpuFusedAdam"
    assert optimizer_name(torch.optim.AdamW(weight)) == "torch AdamW"
    for module, maker in (
        ("apex.optimizers.fused_adam", "NVIDIA apex"),
        ("transformer_engine.x", "Transformer Engine"),
    ):
        made = type("FusedAdam", (torch.optim.AdamW,), {"__module__": module})(weight)
        assert optimizer_name(made) == f"{maker} FusedAdam"
    trainer = open_trainer()
    tell_engine(trainer)
    (event,) = [event for event in trainer.session.attempt.events() if event["kind"] == "engine"]
    assert (event["optimizer"], event["device"], event["peak_tflops"]) == ("MegaVLM CpuFusedAdam", "cpu", None)
    assert "the dense bf16 peak of 'cpu' is not known" in capsys.readouterr().out
