"""A teacher's weights come from a published folder, or somebody says that there are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from aligning_worker import model_config
from safetensors.torch import save_file

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.conversion.teacher import fill_teacher
from megavlm.megatron_mm.model import VisionLanguageModel, build_model
from megavlm.platform.errors import InputError


def teacher(model: VisionLanguageModel) -> dict[str, torch.Tensor]:
    assert model.teacher is not None
    return dict(model.teacher.objectives["teacher"].named_parameters())


@pytest.mark.parametrize("prefix", ["vision_model.", ""])
def test_a_teacher_has_the_weights_of_the_folder(one_process: BuildContext, tmp_path: Path, prefix: str) -> None:
    model = build_model(model_config(), one_process)
    backend.initialise(model, seed=1)
    wanted = {name: torch.randn_like(value) for name, value in teacher(model).items()}
    beside = {"vision_model.post_layernorm.weight": torch.ones(3), "text_model.x": torch.ones(2)}
    renamed = {prefix + name.removeprefix("vision_model."): value for name, value in wanted.items()}
    save_file(renamed | beside, tmp_path / "model.safetensors")
    fill_teacher(model, tmp_path)
    assert all(value.equal(wanted[name]) for name, value in teacher(model).items())


def test_a_weight_that_is_missing_or_of_another_shape_is_named(one_process: BuildContext, tmp_path: Path) -> None:
    model = build_model(model_config(), one_process)
    backend.initialise(model, seed=1)
    weights = {name: value.clone() for name, value in teacher(model).items()}
    first = next(iter(weights))
    save_file(weights | {first: torch.ones(7)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=rf"'{first}' .* is \[7\] there"):
        fill_teacher(model, tmp_path)
    save_file({name: value for name, value in weights.items() if name != first}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=f"'{first}' .* is not there"):
        fill_teacher(model, tmp_path)
