"""Chance against trying every constant answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megavlm.megatron_mm.evaluation.chance import best_constant_answers, chance_accuracy
from megavlm.platform.errors import InputError

items = st.lists(st.tuples(st.sampled_from(["colour", "count"]), st.sampled_from("abcd")), min_size=1)


@given(items)
def test_no_assignment_of_constants_does_better(pairs: list[tuple[str, str]]) -> None:
    best = max(
        sum(answer == (colour if kind == "colour" else count) for kind, answer in pairs)
        for colour in "abcd"
        for count in "abcd"
    )
    assert chance_accuracy(pairs) == pytest.approx(best / len(pairs))


@given(items, st.randoms(use_true_random=False))
def test_order_does_not_matter(pairs: list[tuple[str, str]], rng: object) -> None:
    shuffled = list(pairs)
    rng.shuffle(shuffled)
    assert best_constant_answers(shuffled) == best_constant_answers(pairs)


def test_nothing_has_no_chance() -> None:
    with pytest.raises(InputError):
        chance_accuracy([])
