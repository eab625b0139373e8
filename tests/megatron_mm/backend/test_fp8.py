"""What FP8 asks for: its recipes are megatron-core's and ours to name, rows are filled up, and it is never ignored."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.enums import Fp8Recipe

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.backend import fp8
from megavlm.megatron_mm.config import ModelConfig, Parallel, Stage
from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.model import build_model
from megavlm.megatron_mm.training.encode import PIXELS_AT_ONCE
from megavlm.platform.errors import ConfigError


def test_every_recipe_is_one_of_megatron_cores_and_a_stages() -> None:
    known = {recipe.value for recipe in Fp8Recipe}
    assert set(fp8.RECIPES.values()) <= known and set(fp8.MULTIPLES) == set(fp8.RECIPES.values())
    assert set(fp8.RECIPES) == set(get_args(Stage.model_fields["precision"].annotation)) - {"fp32", "bf16"}
    assert all(PIXELS_AT_ONCE // 448**2 % rows == 0 for rows in fp8.MULTIPLES.values())


@given(st.integers(1, 40), st.integers(1, 1100), st.sampled_from([1, *fp8.MULTIPLES.values()]))
def test_as_few_blank_tiles_as_can_be(count: int, tokens: int, of: int) -> None:
    tiles = torch.ones(count, 1, 1, 1, dtype=torch.uint8)
    full = fp8.filled_up(tiles, tokens, of)
    assert len(full) * tokens % of == 0
    assert torch.equal(full[:count], tiles) and not full[count:].any()
    assert all((count + fewer) * tokens % of for fewer in range(len(full) - count))


def test_blank_tiles_leave_no_trace(
    one_process: BuildContext, tiny_model: Callable[..., ModelConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three tiles of 17 rows, filled up to 16: features and gradients are those of three."""
    model = build_model(tiny_model(), one_process)
    backend.initialise(model, seed=4)
    tiles = torch.randint(0, 256, (3, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))

    def seen() -> tuple[torch.Tensor, torch.Tensor]:
        values = model.tower(tiles).values
        model.zero_grad()
        (values * values.detach().cos()).sum().backward()
        return values.detach(), model.tower.encoder.embedding.patches.weight.grad.clone()

    wanted, rows = seen(), []
    block = model.tower.encoder.block
    block.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[:2].numel()))
    monkeypatch.setattr("megavlm.megatron_mm.encoders.internvit_model.multiple", lambda config: 16)
    for plain, filled in zip(wanted, seen(), strict=True):
        assert plain.shape == filled.shape
        torch.testing.assert_close(filled, plain, rtol=1e-5, atol=1e-6)
    assert rows == [16 * 17]


def test_only_fp8_fills_up() -> None:
    assert fp8.multiple(SimpleNamespace(fp8=None, fp8_recipe="blockwise")) == 1
    assert fp8.multiple(SimpleNamespace(fp8="hybrid", fp8_recipe="blockwise")) == 128


@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU, FP8 is not refused")
@pytest.mark.parametrize("precision", list(fp8.RECIPES))
def test_a_model_in_fp8_is_not_built_where_it_would_be_ignored(
    one_process: BuildContext, tiny_model: Callable[..., ModelConfig], precision: str
) -> None:
    with pytest.raises(ConfigError, match="FP8 needs Transformer Engine and a CUDA device"):
        build_model(tiny_model(), backend.build_context(Parallel(), precision))
