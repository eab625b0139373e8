"""Inline injection: tokens at their places, all tiles' or some."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from megavlm.megatron_mm.contracts import PackedBatch
from megavlm.megatron_mm.injection.model import Injected
from megavlm.platform.errors import InputError


def visual(count: int) -> torch.Tensor:
    return (torch.arange(count * 2.0).view(count, 2) + 100).requires_grad_()


def test_tokens_stand_at_their_places(tiny_pack: Callable[..., PackedBatch]) -> None:
    pack = replace(tiny_pack(lengths=(12,), tiles=0), visual_index=torch.tensor([7, 2, 9, 3]))
    text, tokens = torch.zeros(12, 1, 2, requires_grad=True), visual(4)
    merged = Injected(tokens_per_tile=4).merge(text, replace(pack, visual=tokens))
    assert torch.equal(merged[[7, 2, 9, 3], 0], tokens)
    rest = [i for i in range(12) if i not in (7, 2, 9, 3)]
    assert merged[rest].abs().sum() == 0
    (merged[:, 0] * torch.arange(24.0).view(12, 2)).sum().backward()
    assert torch.equal(tokens.grad, torch.arange(24.0).view(12, 2)[[7, 2, 9, 3]])
    assert text.grad[[7, 2, 9, 3]].abs().sum() == 0 and text.grad[11, 0].tolist() == [22.0, 23.0]


def test_tiles_beside_the_sequence_leave_no_token_in_it(tiny_pack: Callable[..., PackedBatch]) -> None:
    pack = tiny_pack(lengths=(12,), tiles=0)
    some = replace(pack, visual_index=torch.tensor([4, 5]), inline_tiles=torch.tensor([1]), visual=visual(6))
    merged = Injected(tokens_per_tile=2).merge(torch.zeros(12, 1, 2), some)
    assert torch.equal(merged[[4, 5], 0], visual(6)[2:4])
    assert merged[[0, 1, 2, 3, 6, 7, 8, 9, 10, 11]].abs().sum() == 0


def test_another_count_is_an_error(tiny_pack: Callable[..., PackedBatch]) -> None:
    with pytest.raises(InputError, match="8 visual tokens for 4 places"):
        Injected(4).merge(torch.zeros(12, 1, 2), replace(tiny_pack(lengths=(12,), tiles=1), visual=visual(8)))
