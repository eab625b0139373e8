"""Sampling: the nucleus against its definition, frequencies against probabilities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megavlm.megatron_mm.inference.sampling import Sampling, choose, nucleus
from megavlm.platform.errors import ConfigError


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8), st.floats(0.01, 1.0))
def test_nucleus_is_the_smallest_set_that_holds_top_p(weights: list[float], top_p: float) -> None:
    probabilities = torch.tensor(weights, dtype=torch.float64)
    probabilities /= probabilities.sum()
    kept = nucleus(probabilities, top_p)
    inside = kept > 0
    assert torch.equal(kept[inside], probabilities[inside])
    assert kept.sum() >= min(top_p, 1.0) - 1e-9
    assert kept.sum() - kept[inside].min() < top_p + 1e-9  # without its least likely token it would be too little
    if not inside.all():
        assert kept[inside].min() >= probabilities[~inside].max()


def test_frequencies_follow_the_tempered_probabilities() -> None:
    logits, rng = torch.tensor([2.0, 1.0, 0.0, -1.0]), torch.Generator().manual_seed(0)
    drawn = torch.tensor([choose(logits, Sampling(temperature=0.5, top_p=0.95), rng) for _ in range(4000)])
    wanted = torch.softmax(logits / 0.5, dim=0)
    wanted[2:] = 0  # 0.865 + 0.117 reach 0.95
    assert torch.bincount(drawn, minlength=4) / 4000 == pytest.approx((wanted / wanted.sum()).tolist(), abs=0.02)


def test_greedy_takes_the_best_and_of_equals_the_smallest() -> None:
    assert choose(torch.tensor([0.0, 3.0, 3.0]), Sampling(), torch.Generator()) == 1


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.5}])
def test_values_outside_their_ranges_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Sampling(**wrong)
