"""How often the gate is wrong on simulated models of known truth: 10,000 trials a case.

The whole grid is benchmarks/campaigns/gate_rates.md.
"""

from __future__ import annotations

import numpy as np
import pytest

from megavlm.megatron_mm.evaluation.average import shared_confidence
from megavlm.megatron_mm.evaluation.gate import gate_of, paired_gate
from megavlm.megatron_mm.evaluation.intervals import CONTINUITY, score_interval
from megavlm.megatron_mm.evaluation.predictions import Prediction

TRIALS, NOMINAL = 10_000, 0.025
MOST = NOMINAL + 3 * (NOMINAL * (1 - NOMINAL) / TRIALS) ** 0.5
WAYS = np.array([1.0, 0.0, -1.0])
BENCHMARKS = {"mmlu": 14042, "gsm8k": 1319, "math": 5000, "humaneval": 164}


def drawn(items: int, drop: float, gain: float, seed: int) -> np.ndarray:
    """Tables [trials, 3] of items lost, alike and gained."""
    return np.random.default_rng(seed).multinomial(items, [gain + drop, 1 - 2 * gain - drop, gain], size=TRIALS)


def ends(tables: np.ndarray, confidence: float = 0.95, continuity: float = CONTINUITY) -> tuple[np.ndarray, np.ndarray]:
    """Of each trial; each different table is looked at once."""
    different, place = np.unique(tables, axis=0, return_inverse=True)
    low, high = score_interval(WAYS, different, confidence, continuity=continuity)
    return low[place.ravel()], high[place.ravel()]


def predictions(table: np.ndarray) -> tuple[list[Prediction], list[Prediction]]:
    lost, alike, gained = (int(count) for count in table)
    before, after = [True] * (lost + alike) + [False] * gained, [False] * lost + [True] * (alike + gained)
    return tuple([Prediction(str(i), "", right, "", "x") for i, right in enumerate(side)] for side in (before, after))


@pytest.mark.parametrize(
    ("items", "gain", "least"),
    [(164, 0.05, 0.012), (500, 0.05, 0.015), (1319, 0.03, 0.016), (5000, 0.1, 0.018), (14042, 0.03, 0.018)],
)
def test_on_the_allowed_drop_it_fails_and_passes_as_often_as_said(items: int, gain: float, least: float) -> None:
    low, high = ends(drawn(items, 0.01, gain, seed=items))
    assert least <= np.mean(low > 0.01) <= MOST
    assert least <= np.mean(high <= 0.01) <= MOST


@pytest.mark.parametrize(("items", "gain"), [(164, 0.0), (164, 0.01), (500, 0.002), (1319, 0.0)])
def test_where_few_items_differ_it_errs_no_more_often(items: int, gain: float) -> None:
    low, high = ends(drawn(items, 0.02, gain, seed=7))
    assert np.mean(low > 0.02) <= MOST and np.mean(high <= 0.02) <= MOST


def test_well_beyond_it_is_never_missed_and_well_within_never_refused() -> None:
    low, high = ends(drawn(1319, 0.06, 0.03, seed=1))
    assert np.mean(high <= 0.01) == 0 and np.mean(low > 0.01) > 0.99
    low, high = ends(drawn(1319, -0.02, 0.06, seed=2))
    assert np.mean(low > 0.01) == 0 and np.mean(high <= 0.01) > 0.9


def averaged(drops: list[float], seed: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Tables of the four benchmarks, and both ends of their average by the formula itself."""
    sizes = BENCHMARKS.values()
    tables = [drawn(n, drop, 0.04, seed + i) for i, (n, drop) in enumerate(zip(sizes, drops, strict=True))]
    seen = np.array([table @ WAYS / table.sum(1) for table in tables])
    lows, highs = zip(*(ends(table, continuity=0.0) for table in tables), strict=True)
    low = seen.mean(0) - np.sqrt(((seen - np.array(lows)) ** 2).sum(0)) / 4
    return tables, low, seen.mean(0) + np.sqrt(((np.array(highs) - seen) ** 2).sum(0)) / 4


@pytest.mark.parametrize("drops", [[0.01] * 4, [0.03, -0.01, 0.02, 0.0]], ids=["alike", "mixed"])
def test_the_average_of_the_four_text_benchmarks(drops: list[float]) -> None:
    tables, low, high = averaged(drops, seed=11)
    assert 0.015 <= np.mean(low > 0.01) <= MOST and 0.015 <= np.mean(high <= 0.01) <= MOST
    pairs = {name: predictions(table[0]) for name, table in zip(BENCHMARKS, tables, strict=True)}
    told = gate_of(pairs, max_drop=0.01)  # what was counted is what the gate says
    assert (told.drop_low, told.drop_high) == pytest.approx((low[0], high[0]), abs=1e-12)


def test_with_every_suite_on_its_limit_any_fails_as_rarely_as_one() -> None:
    level = shared_confidence(0.95, len(BENCHMARKS) + 1)
    low = np.array([ends(drawn(n, 0.02, 0.04, i), level)[0] for i, n in enumerate(BENCHMARKS.values())])
    assert np.mean((low > 0.02).any(0)) <= MOST
    alone = np.array([ends(drawn(n, 0.02, 0.04, i))[0] for i, n in enumerate(BENCHMARKS.values())])
    assert np.mean((alone > 0.02).any(0)) > 2 * MOST  # what sharing the level is there for


def test_shares() -> None:
    """ANLS-like: an item is worth nothing, or between a half and all; a tenth of the answers are new ones."""
    worth, how_often = np.array([0, 0.5, 0.75, 1.0]), np.array([0.15, 0.05, 0.1, 0.7])
    fresh = 0.1 * np.outer(how_often, how_often)
    same = 0.9 * np.diag(how_often)
    broken = 0.02 / (worth @ how_often) / 0.9
    joint = fresh + (1 - broken) * same
    joint[:, 0] += broken * same.sum(1)
    values, place = np.unique(worth[:, None] - worth[None], return_inverse=True)
    probability = np.bincount(place.ravel(), weights=joint.ravel())
    assert probability @ values == pytest.approx(0.02)
    for items in (164, 500):
        tables = np.random.default_rng(items).multinomial(items, probability, size=TRIALS)
        low, high = score_interval(values, tables, continuity=0.0)
        assert 0.012 <= np.mean(low > 0.02) <= MOST and 0.012 <= np.mean(high <= 0.02) <= MOST
    scores = [[Prediction(str(i), "", w == 1, "", "x", score=w) for i, w in enumerate(side)] for side in SOME]
    told = paired_gate(*scores, max_drop=0.02)
    drops, numbers = np.unique(np.array(SOME[0]) - np.array(SOME[1]), return_counts=True)
    ends_told = [float(end) for end in score_interval(drops, numbers, continuity=0.0)]
    assert [told.drop_low, told.drop_high] == pytest.approx(ends_told, abs=1e-12)


SOME = ([1.0, 0.5, 0.75, 0.0, 1.0, 1.0], [1.0, 0.75, 0.0, 0.0, 1.0, 0.5])
