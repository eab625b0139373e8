"""Hierarchical K-means: no worse than flat where kinds are balanced, fairer where they are not; and the shares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megavlm.data_curation.features import unit
from megavlm.data_curation.kmeans.balance import cap, shares, top_down
from megavlm.data_curation.kmeans.levels import Effort, Level, assigned, grow, resampled
from megavlm.data_curation.kmeans.lloyd import lloyd
from megavlm.data_curation.kmeans.ranks import ranks_in_cluster
from megavlm.data_curation.kmeans.rows import InMemory, on_grid
from megavlm.data_curation.kmeans.start import random_rows, spread_rows

EFFORT = Effort(iterations=20, tolerance=0.0, seed=1, engine="faiss")


def mixture(sizes: list[int], d: int = 8, noise: float = 0.25, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows around as many random directions, and which one each is of."""
    rng = np.random.default_rng(seed)
    kinds = np.repeat(np.arange(len(sizes)), sizes)
    points = unit(rng.normal(size=(len(sizes), d)))[kinds] + noise * rng.normal(size=(len(kinds), d))
    return on_grid(unit(points)).astype(np.float32), kinds


def flat(points: np.ndarray, clusters: int) -> np.ndarray:
    rows = InMemory(points)
    return lloyd(rows, random_rows(rows, clusters, 1), EFFORT.iterations, engine="faiss").centroids


def hierarchical(points: np.ndarray, finest: Level, levels: list[Level]):
    rows = InMemory(points)
    start = lloyd(rows, spread_rows(rows, finest.clusters, 1, "faiss"), EFFORT.iterations, engine="faiss")
    return grow(resampled(rows, start, finest, EFFORT).centroids, levels, EFFORT)


def inertia(points: np.ndarray, centroids: np.ndarray) -> float:
    """Mean squared distance to the nearest centroid."""
    return float(np.min(2 - 2 * points.astype(np.float64) @ centroids.T.astype(np.float64), axis=1).mean())


def entropy(kinds: np.ndarray) -> float:
    shares = np.bincount(kinds) / len(kinds)
    return float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_on_a_balanced_mixture_inertia_is_within_two_percent_of_flat(seed):
    points, _ = mixture([100] * 30, seed=seed)
    levels = [Level(clusters=30, resampling=3, closest=3)]
    tree = hierarchical(points, Level(clusters=120, resampling=1, closest=10), levels)
    assert inertia(points, tree.centroids[0]) <= 1.02 * inertia(points, flat(points, 120))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_on_a_long_tailed_mixture_the_sample_is_more_even_than_flats(seed):
    points, kinds = mixture([int(4000 / rank**1.5) + 4 for rank in range(1, 41)], seed=seed)
    levels = [Level(clusters=60, resampling=5, closest=3), Level(clusters=20, resampling=5, closest=3)]
    tree = hierarchical(points, Level(clusters=200, resampling=2, closest=5), levels)
    drawn = {}
    for name, centroids, parents in (("flat", flat(points, 200), []), ("tree", tree.centroids[0], tree.parents)):
        nearest, _ = assigned(InMemory(points), centroids, "faiss")
        quotas = top_down(np.bincount(nearest, minlength=200), parents, 600, seed=1)
        places = ranks_in_cluster(nearest, np.random.default_rng(0).random(len(nearest)))
        kept = kinds[places < quotas[nearest]]
        assert len(kept) == 600
        drawn[name] = entropy(kept)
    assert drawn["tree"] > drawn["flat"] + 0.3 and drawn["flat"] > entropy(kinds)


def test_every_cluster_has_its_nearest_one_of_the_level_above_as_parent():
    points, _ = mixture([40] * 12)
    tree = hierarchical(points, Level(clusters=48), [Level(clusters=12), Level(clusters=3)])
    assert [len(level) for level in tree.centroids] == [48, 12, 3]
    for below, above, parents in zip(tree.centroids, tree.centroids[1:], tree.parents, strict=False):
        assert np.array_equal(parents, (below @ above.T).argmax(axis=1))


def test_rows_that_are_too_alike_are_clustered_without_resampling():
    points = np.repeat(on_grid(np.eye(3, dtype=np.float32)), 20, axis=0)
    assert np.isfinite(hierarchical(points, Level(clusters=10), [Level(clusters=2)]).centroids[0]).all()


SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=12)


@given(SIZES, st.integers(0, 400))
def test_the_cap_is_the_largest_that_fits(sizes, target):
    found = cap(np.array(sizes), target)
    fits = [c for c in range(max(sizes) + 1) if sum(min(c, size) for size in sizes) <= target]
    assert found == max(fits)


@given(SIZES, st.integers(0, 400), st.integers(0, 99))
def test_shares_are_even_as_far_as_there_are_images(sizes, target, seed):
    given_ = shares(np.array(sizes), target, np.random.default_rng(seed))
    assert given_.sum() == min(target, sum(sizes)) and (given_ <= sizes).all()
    more = [share for share, size in zip(given_, sizes, strict=True) if share < size]
    assert not more or max(given_) - min(more) <= 1


@given(st.lists(st.integers(0, 9), min_size=12, max_size=12), st.integers(0, 120), st.integers(0, 99))
def test_top_down_shares_are_even_at_each_level(sizes, target, seed):
    up = [np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 4]), np.array([0, 0, 1, 1, 1])]
    given_ = top_down(np.array(sizes), up, target, seed)
    assert given_.sum() == min(target, sum(sizes)) and (given_ <= sizes).all()
    tops = [(given_[np.isin(up[0], np.flatnonzero(up[1] == top))].sum(), top) for top in (0, 1)]
    have = [sum(sizes[i] for i in range(12) if up[1][up[0][i]] == top) for _, top in tops]
    for (one, top), (other, _) in (tops, tops[::-1]):
        assert one >= other - 1 or one == have[top], "a top cluster gives less only when it has no more"
