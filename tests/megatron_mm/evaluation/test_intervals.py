"""The intervals against brute force: a likelihood maximised numerically, and coverage over every outcome."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from megavlm.megatron_mm.evaluation.intervals import score_interval, tango_interval

Z95 = 1.959963984540054
WAYS = np.array([1.0, 0.0, -1.0])  # lost, neither, gained


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
@settings(max_examples=50, deadline=None)
def test_both_ends_sit_where_the_brute_force_score_is_z(case: tuple[int, int, int]) -> None:
    lost, gained, items = case
    low, high = tango_interval(lost, gained, items)
    assert brute_force_score(lost, gained, items, high) == pytest.approx(-Z95, abs=1e-4)
    assert brute_force_score(lost, gained, items, low) == pytest.approx(Z95, abs=1e-4)


@given(counts)
@settings(max_examples=50, deadline=None)
def test_mirrored_counts_mirror_the_interval_and_it_holds_the_observed_drop(case: tuple[int, int, int]) -> None:
    lost, gained, items = case
    low, high = tango_interval(lost, gained, items)
    assert tango_interval(gained, lost, items) == pytest.approx((-high, -low), abs=1e-12)
    assert low <= (lost - gained) / items <= high
    wider = score_interval(WAYS, np.array([lost, items - lost - gained, gained]))
    mirrored = score_interval(WAYS, np.array([gained, items - lost - gained, lost]))
    assert mirrored == pytest.approx((-wider[1], -wider[0]), abs=1e-12)
    assert wider[0] <= (lost - gained) / items <= wider[1]


def likeliest(values: np.ndarray, seen: np.ndarray, mean: float) -> np.ndarray:
    """Probabilities of `values` (both ends of the range among them) with that mean, by a general-purpose optimiser."""
    constraints = [
        {"type": "eq", "fun": lambda p: p.sum() - 1},
        {"type": "eq", "fun": lambda p: p @ values - mean},
    ]
    away = np.clip((1 + mean) / 2, 0.01, 0.99)
    start = 0.5 * seen / seen.sum() + 0.5 * np.where(values == 1, away, np.where(values == -1, 1 - away, 0))
    found = minimize(
        lambda p: -(seen * np.log(np.maximum(p, 1e-12))).sum(),
        start,
        bounds=[(1e-12, 1)] * len(values),
        constraints=constraints,
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-13},
    )
    return found.x


@pytest.mark.parametrize("seen", [[0, 3, 20, 5, 0], [1, 0, 30, 4, 2], [0, 0, 12, 0, 0], [0, 2, 9, 9, 1]])
@pytest.mark.parametrize("corrected", [False, True])
def test_ends_of_shares_by_an_optimiser(seen: list[int], corrected: bool) -> None:
    values, numbers = np.array([-1.0, -0.4, 0.0, 0.55, 1.0]), np.array(seen, float)
    corrected = corrected and np.count_nonzero(numbers) > 1  # where nothing varies there is nothing to correct
    for sign, end in zip((1, -1), score_interval(values, numbers, continuity=0.0, skewness=corrected), strict=True):
        p = likeliest(values, numbers, float(end))
        items, off = numbers.sum(), values - float(end)
        deviation = math.sqrt(p @ off**2)
        ratio = math.sqrt(items) * (numbers @ values / items - float(end)) / deviation
        skew = (p @ off**3) / deviation**3 / math.sqrt(items) if corrected else 0.0
        assert sign * ratio == pytest.approx(Z95 + sign * skew * (Z95**2 - 1) / 6, abs=2e-3)


def test_without_discordant_pairs_the_limit_is_the_closed_form() -> None:
    for low, high in (tango_interval(0, 0, 200), score_interval(WAYS, np.array([0, 200, 0]))):
        assert (low, high) == pytest.approx((-(Z95**2) / (200 + Z95**2), Z95**2 / (200 + Z95**2)), abs=1e-12)
    assert high > 1 - 0.025 ** (1 / 200)  # the exact end, when none of 200 is seen


def test_two_points_of_accuracy_need_189_items_when_nothing_changed() -> None:
    assert tango_interval(0, 0, 188)[1] > 0.02 >= tango_interval(0, 0, 189)[1]


RATES = [(0.02, 0.0), (0.02, 0.02), (0.1, 0.05), (0.3, 0.1), (0.05, 0.2)]


def outcomes(items: int, loss: float, gain: float) -> tuple[np.ndarray, np.ndarray]:
    """Every table [n, 3] that is not next to impossible, and its probability [n]."""
    tables, found = [], []
    for lost in range(items + 1):
        for gained in range(items - lost + 1):
            rest = items - lost - gained
            probability = math.comb(items, lost) * math.comb(items - lost, gained)
            probability *= loss**lost * gain**gained * (1 - loss - gain) ** rest
            if probability > 1e-9:
                tables.append((lost, rest, gained))
                found.append(probability)
    return np.array(tables), np.array(found)


@pytest.mark.parametrize("rates", RATES)
def test_coverage_by_enumerating_every_outcome(rates: tuple[float, float]) -> None:
    tables, probability = outcomes(60, *rates)
    low, high = score_interval(WAYS, tables, continuity=0.0, skewness=False)
    drop = rates[0] - rates[1]
    assert 0.93 <= probability @ ((low <= drop) & (drop <= high)) <= 0.9999


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("items", [60, 120])
def test_each_end_corrected_errs_in_no_more_than_its_half(items: int, rates: tuple[float, float]) -> None:
    tables, probability = outcomes(items, *rates)
    low, high = score_interval(WAYS, tables)
    drop = rates[0] - rates[1]
    assert probability @ (low > drop) <= 0.0255
    assert probability @ (high < drop) <= 0.0255


def test_all_lost_or_none_ends_at_the_range() -> None:
    assert score_interval(WAYS, np.array([7, 0, 0]))[1] == 1
    assert score_interval(WAYS, np.array([0, 0, 7]))[0] == -1


@pytest.mark.parametrize("bad", [(1, 0, 0), (-1, 0, 5), (3, 3, 5)])
def test_impossible_counts_are_refused(bad: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="impossible"):
        tango_interval(*bad)


def test_values_beyond_the_range_are_refused() -> None:
    with pytest.raises(ValueError, match="impossible"):
        score_interval(np.array([0.0, 1.5]), np.array([1, 1]))
    with pytest.raises(ValueError, match="confidence"):
        score_interval(WAYS, np.array([1, 1, 1]), 95)
