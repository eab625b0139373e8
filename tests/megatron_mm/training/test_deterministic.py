"""Deterministic mode reaches the ranks, and with overlap on two replicas gives the same bits again."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.backend.deterministic import ALLOWED
from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.training.loop import StageTrainer
from megavlm.megatron_mm.training.plan import make_plan
from megavlm.platform.config import load_recipe
from megavlm.platform.errors import ConfigError
from megavlm.platform.runs import RunFolder

TWO_REPLICAS = [
    "stages.language.parallel={tp: 1, overlap: true}",
    "stages.language.train=[encoder,connector,decoder]",
    "stages.language.mixture.weights={text: 1, vqa: 2}",
    "stages.language.checkpoint={every: 2, keep_last: 2}",
    "stages.language.deterministic=true",
    "stages.language.evaluate=null",
    "stages.gate=null",
]


def losses(run: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["grad_norm"]) for line in RunFolder(run).metrics()]


@pytest.mark.multiprocess
@pytest.mark.timeout(200)
def test_steps_trained_once_more_are_bit_equal(
    megavlm: Callable[..., subprocess.Popen[str]], recipe: Path, tmp_path: Path
) -> None:
    """Two replicas that overlap: from a checkpoint, so that it holds weights that every rank has got."""
    run = tmp_path / "run"
    command = ["train", str(recipe), *TWO_REPLICAS, "--stage", "language", "--nproc", "2", "--out", str(run)]
    for again in ([], ["--from-step", "2"]):
        (run / "stages" / "language" / "finished").unlink(missing_ok=True)
        process = megavlm(*command, *again)
        _, err = process.communicate(timeout=90)
        assert process.returncode == 0, err
    assert [step for step, *_ in losses(run)] == [1, 2, 3, 4, 3, 4]
    assert losses(run)[2:4] == losses(run)[4:]
    first, second = ([e for e in a.events() if e["kind"] == "engine"][0] for a in RunFolder(run).attempts())
    assert (first["from_step"], second["from_step"]) == (0, 2)
    assert first["overlap"] == "gradient sums and parameter gathers" and first["optimizer"] == "MegaVLM CpuFusedAdam"
    assert first["deterministic"] == " ".join(["torch", *(f"{name}={values[0]}" for name, values in ALLOWED.items())])


def test_the_switches_follow_the_stage(open_trainer: Callable[..., StageTrainer]) -> None:
    trainer = open_trainer("stages.language.deterministic=true")
    assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
    assert trainer.model.config.deterministic_mode and trainer.model.tower.config.deterministic_mode
    embedding = trainer.model.stages[0].decoder.embedding.word_embeddings
    assert embedding.deterministic_mode
    backend.init_distributed(Parallel(), seed=1)  # the next stage's
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic


@pytest.mark.parametrize(("name", "value"), [("NCCL_ALGO", "NVLS"), ("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "1"),
                                             ("CUBLAS_WORKSPACE_CONFIG", ":0:0")])  # fmt: skip
def test_an_environment_that_says_otherwise(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    make_plan(load_recipe(str(recipe)), nproc=2)
    wished = load_recipe(str(recipe), ["stages.sft.deterministic=true"])
    with pytest.raises(ConfigError, match=f"deterministic, and the environment says {name}={value}") as error:
        make_plan(wished, nproc=2)
    assert error.value.where == "stages.sft.deterministic" and f"unset {name}" in error.value.fix
    make_plan(wished, nproc=2, elsewhere=True)
    monkeypatch.setenv(name, ALLOWED[name][-1])
    make_plan(wished, nproc=2)
