"""The argmax among equals."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from megavlm.megatron_mm.evaluation.vocabulary import smallest_argmax


@given(st.lists(st.lists(st.integers(-2, 2), min_size=5, max_size=5), min_size=1, max_size=6))
def test_of_equal_values_the_smallest_index_is_taken(rows: list[list[int]]) -> None:
    best, place = smallest_argmax(torch.tensor(rows, dtype=torch.float32))
    assert place.tolist() == [row.index(max(row)) for row in rows]
    assert best.tolist() == [max(row) for row in rows]
