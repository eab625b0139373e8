"""Tango's interval against brute force: a likelihood maximised numerically, and coverage over every outcome."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megavlm.megatron_mm.evaluation.intervals import tango_interval

Z95 = 1.959963984540054


def brute_force_score(lost: int, gained: int, items: int, drop: float) -> float:
    """(observed - hypothesised) / standard deviation, the nuisance rate found by ternary search of the likelihood."""

    def log_likelihood(gain: float) -> float:
        rates = (gain + drop, gain, 1 - 2 * gain - drop)
        counts = (lost, gained, items - lost - gained)
        return sum(n * math.log(max(p, 1e-300)) for n, p in zip(counts, rates, strict=True) if n)

    low, high = max(0.0, -drop), (1 - drop) / 2
    for _ in range(300):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (left, high) if log_likelihood(left) < log_likelihood(right) else (low, right)
    gain = (low + high) / 2
    return (lost - gained - items * drop) / math.sqrt(items * (2 * gain + drop - drop * drop))


counts = st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 100)).map(lambda t: (t[0], t[1], sum(t)))


@given(counts)
@settings(max_examples=100, deadline=None)
def test_both_ends_sit_where_the_brute_force_score_is_z(case: tuple[int, int, int]) -> None:
    lost, gained, items = case
    low, high = tango_interval(lost, gained, items)
    assert brute_force_score(lost, gained, items, high) == pytest.approx(-Z95, abs=1e-4)
    assert brute_force_score(lost, gained, items, low) == pytest.approx(Z95, abs=1e-4)


@given(counts)
def test_mirrored_counts_mirror_the_interval_and_it_holds_the_observed_drop(case: tuple[int, int, int]) -> None:
    lost, gained, items = case
    low, high = tango_interval(lost, gained, items)
    assert tango_interval(gained, lost, items) == pytest.approx((-high, -low), abs=1e-12)
    assert low <= (lost - gained) / items <= high


def test_without_discordant_pairs_the_limit_is_the_closed_form() -> None:
    low, high = tango_interval(0, 0, 200)
    assert (low, high) == pytest.approx((-(Z95**2) / (200 + Z95**2), Z95**2 / (200 + Z95**2)), abs=1e-12)


def test_two_points_of_accuracy_need_189_items_when_nothing_changed() -> None:
    assert tango_interval(0, 0, 188)[1] > 0.02 >= tango_interval(0, 0, 189)[1]


@pytest.mark.parametrize("rates", [(0.02, 0.0), (0.02, 0.02), (0.1, 0.05), (0.3, 0.1), (0.05, 0.2)])
def test_coverage_by_enumerating_every_outcome(rates: tuple[float, float]) -> None:
    items, (loss, gain) = 60, rates
    covered = 0.0
    for lost in range(items + 1):
        for gained in range(items - lost + 1):
            rest = items - lost - gained
            probability = math.comb(items, lost) * math.comb(items - lost, gained)
            probability *= loss**lost * gain**gained * (1 - loss - gain) ** rest
            if probability > 1e-9:
                low, high = tango_interval(lost, gained, items)
                covered += probability * (low <= loss - gain <= high)
    assert 0.93 <= covered <= 0.9999


@pytest.mark.parametrize("bad", [(1, 0, 0), (-1, 0, 5), (3, 3, 5)])
def test_impossible_counts_are_refused(bad: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="impossible"):
        tango_interval(*bad)
