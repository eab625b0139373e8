"""SemDeDup's two rules against direct readings of the published code and of the paper's section 3."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megavlm.data_curation import semdedup
from megavlm.data_curation.deduplication.images import ranks
from megavlm.data_curation.features import unit
from megavlm.data_curation.semdedup import code_rule, interpolated, paper_rule

EPSILONS = (0.003, 0.03, 0.15)


def vectors(count: int = 5000, d: int = 24, seed: int = 0) -> np.ndarray:
    """Unit rows, near-copies of earlier ones at many distances."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, d))
    for i in range(1, count):
        if rng.random() < 0.6:
            rows[i] = rows[rng.integers(0, i)] + 10 ** rng.uniform(-2.2, -0.2) * rng.normal(size=d)
    return unit(rows).astype(np.float32)


def direct_code(points: np.ndarray, epsilon: float) -> np.ndarray:
    """Upper triangle of all cosines, its maximum in each column; kept where that is at most 1 - epsilon."""
    similar = np.triu(points.astype(np.float64) @ points.T.astype(np.float64), 1)
    return similar.max(axis=0) <= 1 - epsilon


def direct_paper(points: np.ndarray, epsilon: float) -> np.ndarray:
    """Groups of images linked by pairs, by flooding; the first of each is kept."""
    linked = points.astype(np.float64) @ points.T.astype(np.float64) >= 1 - epsilon
    kept, seen = np.zeros(len(points), bool), np.zeros(len(points), bool)
    for first in range(len(points)):
        kept[first] = not seen[first]
        edge = np.array([first]) if not seen[first] else np.empty(0, int)
        while len(edge):
            seen[edge] = True
            edge = np.flatnonzero(linked[edge].any(axis=0) & ~seen)
    return kept


@pytest.fixture(scope="module")
def cluster() -> tuple[np.ndarray, np.ndarray]:
    """5,000 vectors, and their cosines to their mean direction."""
    points = vectors()
    return points, points @ unit(points.mean(axis=0, keepdims=True))[0]


@pytest.mark.parametrize("keep", ["hard", "easy", "random"])
def test_the_kept_are_those_of_a_direct_implementation(cluster, keep):
    points, cosine = cluster
    facts = {"width": cosine, "height": cosine, "bytes": cosine, "cosine": cosine}
    order = np.argsort(ranks(keep, facts | {"drawn": np.random.default_rng(3).random(5000)})[0], kind="stable")
    points = points[order]
    for epsilon in EPSILONS:
        by_code, by_paper = direct_code(points, epsilon), direct_paper(points, epsilon)
        assert np.array_equal(code_rule(points, epsilon) < 0, by_code)
        assert np.array_equal(paper_rule(points, epsilon) < 0, by_paper)
        assert 500 < by_paper.sum() < by_code.sum() < 4950, "the rules differ, and each drops some"


@given(st.integers(0, 10**6), st.integers(1, 60), st.sampled_from([2, 7, 2048]), st.sampled_from(EPSILONS))
@settings(max_examples=60, deadline=None)
def test_whatever_the_blocks_each_names_the_first_one_it_resembles(seed, n, block, epsilon):
    points = vectors(n, 6, seed)
    old, semdedup.BLOCK = semdedup.BLOCK, block
    try:
        earlier, leaders = code_rule(points, epsilon), paper_rule(points, epsilon)
    finally:
        semdedup.BLOCK = old
    similar = points.astype(np.float64) @ points.T.astype(np.float64)
    if np.abs(similar - (1 - epsilon)).min() < 1e-6:
        return  # float32 may see that pair on the other side
    for i in range(n):
        near = np.flatnonzero(similar[i, :i] > 1 - epsilon)
        assert earlier[i] == (near[0] if len(near) else -1)
    kept = direct_paper(points, epsilon)
    assert np.array_equal(leaders < 0, kept) and all(kept[leaders[leaders >= 0]])


def test_a_chain_is_one_group_to_the_paper_and_loses_less_by_the_code():
    angles = np.deg2rad([0, 20, 10])  # the third is near both others, which are not near each other
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    epsilon = 1 - np.cos(np.deg2rad(12))
    assert code_rule(points, epsilon).tolist() == [-1, -1, 0]
    assert paper_rule(points, epsilon).tolist() == [-1, 0, 0]


def test_planted_cosines_are_found():
    """Copies at cosines of 0.96 and more, and neighbours at 0.90 and less, for a threshold of 0.93."""
    rng = np.random.default_rng(1)
    bases, d = unit(rng.normal(size=(1000, 64))), 64
    cosines = np.where(np.arange(1000) % 2, rng.uniform(0.96, 0.9999, 1000), rng.uniform(0.5, 0.90, 1000))
    off = rng.normal(size=(1000, d))
    off = unit(off - (off * bases).sum(axis=1, keepdims=True) * bases)
    planted = cosines[:, None] * bases + np.sqrt(1 - cosines**2)[:, None] * off
    points = unit(np.concatenate([bases, planted]).astype(np.float16).astype(np.float32)).astype(np.float32)
    for rule in (code_rule, paper_rule):
        dropped = rule(points, 0.07) >= 0
        right = dropped[1000:] & (cosines > 0.93)
        assert right.sum() >= 0.99 * (cosines > 0.93).sum() and right.sum() >= 0.99 * dropped.sum()


def test_pairs_that_are_not_confirmed_do_not_count():
    points = np.ones((3, 1), np.float32)
    only = {(0, 2)}

    def confirm(a, b):
        return np.array([pair in only for pair in zip(a.tolist(), b.tolist(), strict=True)], bool)

    assert code_rule(points, 0.1, confirm).tolist() == [-1, -1, 0]
    assert paper_rule(points, 0.1, confirm).tolist() == [-1, -1, 0]


def test_equal_icons_cost_one_block(monkeypatch):
    """Each is compared with the first block only."""
    seen = []
    original = semdedup._hits

    def counted(points, top, columns, *rest):
        seen.append(len(columns))
        return original(points, top, columns, *rest)

    monkeypatch.setattr(semdedup, "_hits", counted)
    points = np.tile(np.array([[0.6, 0.8]], np.float32), (30_000, 1))
    assert (code_rule(points, 0.01) == np.concatenate([[-1], np.zeros(29_999, int)])).all()
    assert sum(seen) == 29_999


def test_the_epsilon_lies_on_the_line_through_two_trials():
    assert interpolated(0.6, (0.01, 0.1), (0.8, 0.4)) == pytest.approx(0.055)
    assert interpolated(0.9, (0.01, 0.1), (0.5, 0.4)) == 0.0, "never below zero"
