"""Inline injection: tags as published, tokens at their places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from megavlm.megatron_mm.contracts import PackedBatch
from megavlm.megatron_mm.injection.inline import Inline
from megavlm.megatron_mm.injection.inline_model import InlineInjection
from megavlm.platform.errors import InputError


@pytest.mark.parametrize(
    ("tiles", "tags"),
    [
        (1, ["<tile_global_thumbnail>"]),
        (3, ["<tile_1>", "<tile_2>", "<tile_global_thumbnail>"]),
        (7, [*(f"<tile_{k}>" for k in range(1, 7)), "<tile_global_thumbnail>"]),
    ],
)
def test_one_dimensional_tags(tiles: int, tags: list[str]) -> None:
    assert [Inline().tile_prefix(i, tiles) for i in range(tiles)] == tags
    assert [Inline(tags="none").tile_prefix(i, tiles) for i in range(tiles)] == [""] * tiles


def visual(count: int) -> torch.Tensor:
    return (torch.arange(count * 2.0).view(count, 2) + 100).requires_grad_()


def test_tokens_stand_at_their_places(tiny_pack: Callable[..., PackedBatch]) -> None:
    pack = replace(tiny_pack(lengths=(12,), tiles=0), visual_index=torch.tensor([7, 2, 9, 3]))
    text, tokens = torch.zeros(12, 1, 2, requires_grad=True), visual(4)
    merged, extra = InlineInjection()(text, tokens, pack)
    assert extra == {}
    assert torch.equal(merged[[7, 2, 9, 3], 0], tokens)
    rest = [i for i in range(12) if i not in (7, 2, 9, 3)]
    assert merged[rest].abs().sum() == 0
    (merged[:, 0] * torch.arange(24.0).view(12, 2)).sum().backward()
    assert torch.equal(tokens.grad, torch.arange(24.0).view(12, 2)[[7, 2, 9, 3]])
    assert text.grad[[7, 2, 9, 3]].abs().sum() == 0 and text.grad[11, 0].tolist() == [22.0, 23.0]


def test_another_count_is_an_error(tiny_pack: Callable[..., PackedBatch]) -> None:
    with pytest.raises(InputError, match="8 visual tokens for 4 places"):
        InlineInjection()(torch.zeros(12, 1, 2), visual(8), tiny_pack(lengths=(12,), tiles=1))
