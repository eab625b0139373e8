"""Which positions a context-parallel rank holds. What is computed on them is shown in test_parallel.py."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from megavlm.megatron_mm.backend.context import _order, pieces


@given(st.integers(1, 8), st.integers(1, 6))
def test_every_position_is_held_once_and_attention_costs_all_the_same(cp: int, size: int) -> None:
    length = 2 * cp * size
    held = [[*front, *back] for front, back in (pieces(length, cp, rank) for rank in range(cp))]
    assert sorted(position for each in held for position in each) == list(range(length))
    # a position attends to itself and to all before it
    assert len({sum(position + 1 for position in each) for each in held}) == 1
    joined = torch.tensor([position for each in held for position in each])
    assert joined[_order(length, cp, joined.device)].tolist() == list(range(length))
