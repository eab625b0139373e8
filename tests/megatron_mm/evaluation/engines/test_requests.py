"""What is read for log-likelihoods: by brute force over a table of probabilities that depend on the whole prefix."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megavlm.megatron_mm.evaluation.engines.requests import in_order, judged, readings
from megavlm.platform.errors import InputError

TOKENS = st.integers(0, 3)
PAIRS = st.lists(st.tuples(st.lists(TOKENS, min_size=1, max_size=6), st.lists(TOKENS, max_size=4)), max_size=8)
MOST = 5


def likely(prefix: tuple[int, ...]) -> list[float]:
    """A made-up model: log-probabilities of four tokens after a prefix."""
    draw = random.Random(hash(prefix))
    return [-draw.random() for _ in range(4)]


def row(prefix: tuple[int, ...], token: int) -> tuple[float, float]:
    return likely(prefix)[token], float(max(range(4), key=likely(prefix).__getitem__) == token)


def alone(context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """One pair by itself, token by token; as lm-eval cuts it, all but the last MOST + 1 tokens are forgotten."""
    ids = [*context, *continuation][-(MOST + 1) :]
    first = len(ids) - len(continuation)
    rows = [row(tuple(ids[:place]), ids[place]) for place in range(first, len(ids))]
    return sum(own for own, _ in rows), all(best for _, best in rows)


@given(PAIRS)
def test_readings_answer_every_pair_as_it_would_be_alone(pairs: list[tuple[list[int], list[int]]]) -> None:
    found = {}
    wanted = readings(pairs, MOST)
    for reading in wanted:
        assert 0 < len(reading.ids) <= MOST
        places = reading.wanted(start=100)
        rows = [row(reading.ids[: place - 100 + 1], token) for place, token in places]
        found |= judged(reading, rows)
    scores = in_order(len(pairs), found)
    for (context, continuation), (own, best) in zip(pairs, scores, strict=True):
        reference = alone(context, continuation)
        assert own == pytest.approx(reference[0]) and best == reference[1]
    assert len({reading.ids for reading in wanted}) == len(wanted)


def test_choices_of_one_token_are_one_reading() -> None:
    (reading,) = readings([([1, 2], [letter]) for letter in range(4)], MOST)
    assert reading.ids == (1, 2) and reading.wanted() == [(1, letter) for letter in range(4)]


@pytest.mark.parametrize("pair", [([], [1]), ([], [1, 2]), ([3], [1] * 6), ([3] * 9, [1] * 7)])
def test_what_follows_nothing_or_does_not_fit_is_refused(pair: tuple[list[int], list[int]]) -> None:
    with pytest.raises(InputError, match="the model reads 5"):
        readings([pair], MOST)
