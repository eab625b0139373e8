"""A stage that starts from imported weights: what they hold is theirs, the rest is drawn."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.conversion.verb import import_main, verify_main
from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.training.loop import Session, StageTrainer
from megavlm.megatron_mm.training.packs import ensure_packs
from megavlm.megatron_mm.training.plan import make_plan
from megavlm.megatron_mm.training.pulse import Pulse
from megavlm.platform.config import load_recipe
from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.runs import RunFolder

STAGE = "stages.language."


@pytest.fixture
def trainer(recipe: Path, tmp_path: Path) -> Iterator[Callable[..., StageTrainer]]:
    """`trainer(*overrides, run=...)`: the tiny recipe's first stage, in one process; its decoder frozen."""
    torch.set_num_threads(1)

    def make(*overrides: str, run: str = "trained") -> StageTrainer:
        own = [f"{STAGE}parallel.tp=1", f"{STAGE}train=[encoder]", f"{STAGE}steps=2", *overrides]
        found = load_recipe(str(recipe), own)
        folder = RunFolder.create(tmp_path / run, found.tree, found.origins, ["train"])
        ensure_packs(folder, StageData.of(found, "language"))
        backend.start_processes()
        attempt = folder.new_attempt()
        return StageTrainer(Session(folder, attempt, found, Pulse(attempt, 0, 1), lambda: False), "language")

    yield make
    backend.shutdown()


@pytest.fixture
def start(recipe: Path, tmp_path: Path, publish_language: Callable[..., Any]) -> Path:
    """A run of imported weights of the recipe's decoder; the published ones are in `published`."""
    publish_language(StageData.of(load_recipe(str(recipe)), "language").model, tmp_path / "published")
    import_main([str(tmp_path / "published"), "--recipe", str(recipe), "--out", str(tmp_path / "start")])
    return tmp_path / "start"


def test_trains_from_what_was_imported(trainer: Callable[..., StageTrainer], start: Path, tmp_path: Path) -> None:
    """Frozen weights are still bit-equal to what was published after training, and encoder and connector are drawn."""
    drawn = {name: p.clone() for name, p in trainer(run="drawn").model.tower.named_parameters()}
    begun = trainer(f"{STAGE}start={start}")
    assert all(torch.equal(p, drawn[name]) for name, p in begun.model.tower.named_parameters())
    assert begun.train()
    backend.shutdown()
    assert verify_main([str(tmp_path / "trained"), str(tmp_path / "published")]) == 0


def test_weights_of_another_model(trainer: Callable[..., StageTrainer], start: Path) -> None:
    with pytest.raises(InputError, match=r"weight .* is \[.*\] here and \[.*\] there"):
        trainer(f"{STAGE}start={start}", "model.decoder.ffn=320")
    (start / "checkpoints" / "language" / "step-000000" / "COMPLETE").unlink()
    with pytest.raises(InputError, match="no complete checkpoint"):
        trainer(f"{STAGE}start={start}", run="other")


def test_weights_come_from_one_place(recipe: Path) -> None:
    with pytest.raises(ConfigError, match="leave out either start or after"):
        load_recipe(str(recipe), ["stages.sft.start=runs/start"])


def test_what_an_import_tells_of_itself(start: Path) -> None:
    marker = json.loads((start / "checkpoints" / "language" / "step-000000" / "COMPLETE").read_text())
    assert marker == {"stage": "language", "step": 0, "parts": ["decoder"]}
    assert yaml.safe_load((start / "config.yaml").read_text())["model"]["decoder"]["name"] == "qwen2"


def test_a_start_that_is_not_there_is_told_before_anything_runs(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="stage 'language' starts from weights that are not there"):
        make_plan(load_recipe(str(recipe), [f"{STAGE}start={tmp_path / 'start'}"]), "language")
