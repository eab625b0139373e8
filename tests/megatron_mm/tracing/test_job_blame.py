"""Where a failure stands: read from the frames of modules that really fail."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from megavlm.megatron_mm.tracing.blame import explained
from megavlm.platform.errors import ConfigError


class Wrapper(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


class Tower(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.connector = nn.Sequential(nn.Linear(4, 8), nn.Linear(width, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.connector(x)


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Unfinished()


class Unfinished(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        raise AssertionError  # as an `assert` is, which pytest would give a message


def failure(of: object, *args: object) -> ConfigError:
    with pytest.raises(Exception) as caught:
        of(*args)  # type: ignore[operator]
    return explained(caught.value, "rank 5 of 8", "sft")


def test_a_module_is_named_by_its_way_through_its_owners_without_wrappers() -> None:
    found = failure(Wrapper(Wrapper(Tower(9))), torch.zeros(3, 4))
    where = f"rank 5 of 8, Tower.connector.1, {__name__}:"
    assert found.where and found.where.startswith(where)
    assert "mat1 and mat2 shapes cannot be multiplied (3x8 and 9x2)" in found.what
    assert "input 3x8" in found.what and "weight 2x9" in found.what
    assert found.fix == "change model.connector, or stages.sft.parallel"


def test_a_failure_in_a_backward_pass_through_a_checkpoint_is_named_too() -> None:
    class Later(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x.exp() if self.calls == 1 else x.reshape(-1, 5).exp()

    later = Later()
    kept = torch.utils.checkpoint.checkpoint(later, torch.zeros(3, 4, requires_grad=True), use_reentrant=True)
    found = failure(kept.sum().backward)
    assert found.where and "Later" in found.where and "invalid for input of size 12" in found.what


def test_one_being_built_is_named_by_class_and_an_assertion_by_what_it_asserts() -> None:
    found = failure(Half)
    assert found.where and "Half.Unfinished" in found.where
    assert found.what == "AssertionError: raise AssertionError  # as an `assert` is, which pytest would give a message"


def test_an_error_of_ours_keeps_its_place_and_its_fix() -> None:
    def refuse() -> None:
        raise ConfigError("hidden 5", where="model.decoder.hidden", fix="set it to 6")

    found = failure(refuse)
    assert (found.what, found.fix) == ("hidden 5", "set it to 6")
    assert found.where == "rank 5 of 8, model.decoder.hidden"


def test_outside_of_any_module_the_line_is_told() -> None:
    found = failure(torch.zeros(3).view, 2)
    assert found.where and found.where.startswith(f"rank 5 of 8, {__name__}:")
    assert found.fix == "change the model, or stages.sft.parallel"
