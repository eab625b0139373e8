"""The average's interval against a normal sum, against one suite, and the shared level."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from megavlm.megatron_mm.evaluation.average import mean_drop, mean_interval, shared_confidence
from megavlm.megatron_mm.evaluation.pairs import Paired

Z95 = NormalDist().inv_cdf(0.975)


def suite(lost: int, gained: int, items: int) -> Paired:
    return Paired(0.9, 0.9, np.array([-1.0, 0.0, 1.0]), np.array([gained, items - lost - gained, lost]))


def test_of_normal_estimates_it_is_the_normal_interval_of_their_mean() -> None:
    drops, errors = np.array([0.02, -0.01, 0.05]), np.array([0.003, 0.01, 0.02])
    low, high = mean_interval(drops, drops - Z95 * errors, drops + Z95 * errors)
    error = np.sqrt((errors**2).sum()) / 3
    assert (low, high) == pytest.approx((0.02 - Z95 * error, 0.02 + Z95 * error))


def test_each_end_takes_only_its_own_sides() -> None:
    low, high = mean_interval(np.zeros(2), np.array([-0.03, -0.04]), np.array([0.0, 0.0]))
    assert (low, high) == pytest.approx((-0.025, 0.0))


def test_one_suite_is_itself() -> None:
    one = suite(9, 4, 300)
    assert mean_drop([one], 0.95) == one.interval(0.95)


def test_many_equal_suites_narrow_it_as_many_items_do() -> None:
    four = mean_drop([suite(40, 30, 1000)] * 4, 0.95)
    assert four == pytest.approx(suite(160, 120, 4000).interval(0.95, alone=False), abs=2e-4)


def test_more_items_at_the_same_rates_narrow_it() -> None:
    suites = [suite(9, 4, 300), suite(3, 3, 100)]
    wide, narrow = mean_drop(suites, 0.95), mean_drop(suites, 0.95, scale=4)
    assert (narrow[1] - narrow[0]) == pytest.approx((wide[1] - wide[0]) / 2, rel=0.1)


def test_independent_claims_at_the_shared_level_err_together_as_one_does() -> None:
    level = shared_confidence(0.95, 5)
    assert 1 - level**5 == pytest.approx(0.05, abs=0.002) and 1 - level**5 <= 0.05
    assert shared_confidence(0.95, 1) == pytest.approx(0.95)
