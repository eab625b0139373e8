"""Intervals between saves against simulated failures, and against brute force."""

from __future__ import annotations

import math
import random

import pytest

from megavlm.megatron_mm.planning.saves import MTBF_HOURS, best_interval, lost_share


def lived_through(interval: float, stall: float, mtbf: float, saves: int) -> float:
    """Seconds until so many saves are done where failures come at random: work since the last save is lost."""
    draw, now = random.Random(1), 0.0
    failure = draw.expovariate(1 / mtbf)
    for _ in range(saves):
        while failure < now + interval + stall:
            now = failure
            failure = now + draw.expovariate(1 / mtbf)
        now += interval + stall
    return now


@pytest.mark.parametrize(("interval", "stall", "mtbf"), [(600, 10, 10_000), (3_000, 60, 10_000), (8_000, 900, 10_000)])
def test_the_lost_share_is_that_of_a_simulated_run(interval, stall, mtbf):
    took = lived_through(interval, stall, mtbf, saves=40_000)
    assert lost_share(interval, stall, mtbf) == pytest.approx(1 - 40_000 * interval / took, rel=0.05)


@pytest.mark.parametrize("stall", [1.0, 30.0, 600.0, 3_000.0])
def test_no_other_interval_loses_less(stall):
    mtbf = 10_000.0
    tried = [stall * 1.01**k for k in range(-400, 1_200)]
    least = min(lost_share(interval, stall, mtbf) for interval in tried)
    assert lost_share(best_interval(stall, mtbf), stall, mtbf) == pytest.approx(least, rel=2e-3)


def test_short_saves_are_youngs_square_root():
    assert best_interval(1.0, 1e7) == pytest.approx(math.sqrt(2 * 1.0 * 1e7), rel=1e-3)


def test_llama_3_was_interrupted_every_three_hours():
    """419 times in 54 days (arXiv 2407.21783, section 3.3.4)."""
    between = MTBF_HOURS / 16_384
    assert between == pytest.approx(3.1, rel=0.01)
