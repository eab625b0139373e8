"""K-means against FAISS, brute force and its own definition; and that the sums do not depend on who adds them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megavlm.data_curation.features import unit
from megavlm.data_curation.kmeans.lloyd import Fit, add_up, lloyd, moved, total
from megavlm.data_curation.kmeans.nearest import searcher
from megavlm.data_curation.kmeans.ranks import ranks_in_cluster
from megavlm.data_curation.kmeans.rows import InMemory, OnDisk, on_grid
from megavlm.data_curation.kmeans.start import random_rows, spread_rows


def blobs(n: int = 400, k: int = 7, d: int = 16, noise: float = 0.2, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(k, d))[rng.integers(0, k, n)] + noise * rng.normal(size=(n, d))
    return on_grid(unit(points)).astype(np.float32)


@pytest.mark.parametrize("engine", ["faiss", "kernel", "auto"])
def test_assignment_is_brute_forces_nearest_centroid(engine):
    points = blobs()
    centroids = lloyd(InMemory(points), random_rows(InMemory(points), 7, 1), 20).centroids
    indices, cosines = searcher(centroids, engine, len(points))(points)
    table = points.astype(np.float64) @ centroids.astype(np.float64).T
    assert np.array_equal(indices, table.argmax(axis=1))
    assert np.allclose(cosines, table.max(axis=1), atol=1e-6)


def test_it_goes_where_faiss_goes_from_the_same_start():
    import faiss

    points = blobs(600, 9, 16, noise=0.5)
    start = random_rows(InMemory(points), 9, 2)
    for iterations in (1, 3, 10):
        model = faiss.Kmeans(16, 9, niter=iterations, spherical=True, min_points_per_centroid=1)
        model.cp.early_stop_threshold = -1.0  # run them all
        model.train(points, init_centroids=start.centroids)
        ours = lloyd(InMemory(points), start, iterations, tolerance=0.0)
        assert np.allclose(ours.centroids, unit(model.centroids), atol=1e-5), iterations


def test_a_converged_centroid_is_the_mean_direction_of_its_members():
    points = blobs()
    fit = lloyd(InMemory(points), random_rows(InMemory(points), 7, 1), 100)
    assert fit.ended(100, 0.0) == "converged" and 1 < len(fit.objectives) < 100
    assert all(later >= earlier for earlier, later in zip(fit.objectives, fit.objectives[1:], strict=False))
    indices, _ = searcher(fit.centroids, "faiss", len(points))(points)
    for cluster in np.unique(indices):
        mean = points[indices == cluster].mean(axis=0)
        assert np.allclose(fit.centroids[cluster], mean / np.linalg.norm(mean), atol=1e-6)
    assert np.allclose(np.linalg.norm(fit.centroids, axis=1), 1.0, atol=1e-6)


def test_it_stops_at_the_iterations_asked_for_or_at_the_tolerance():
    points = InMemory(blobs(noise=1.0))
    start = random_rows(points, 20, 1)
    assert lloyd(points, start, 2).ended(2, 0.0) == "iterations"
    assert len(lloyd(points, start, 50, tolerance=0.05).objectives) < len(lloyd(points, start, 50).objectives)


@given(st.integers(0, 10**6), st.lists(st.integers(0, 300), max_size=4))
@settings(max_examples=30, deadline=None)
def test_any_split_of_the_rows_adds_up_to_the_same_bits(seed, cuts):
    points = blobs(300, seed=seed)
    centroids = points[:5].copy()
    search = searcher(centroids, "faiss", 300)
    whole = add_up([points], search, centroids.shape)
    pieces = np.split(points, sorted(cuts))
    parts = total([add_up([piece], search, centroids.shape) for piece in pieces[::-1] if len(piece)])
    assert parts.rows.tobytes() == whole.rows.tobytes() and parts.cosine == whole.cosine
    assert np.array_equal(parts.counts, whole.counts)
    indices, cosines = search(points)
    exact = np.stack([points[indices == cluster].astype(np.float64).sum(axis=0) for cluster in range(5)])
    assert np.array_equal(whole.rows, exact) and whole.cosine == pytest.approx(cosines.sum(), abs=1e-4)


def test_an_empty_cluster_takes_half_of_the_largest():
    points = np.repeat(on_grid(np.eye(4, dtype=np.float32)), [50, 3, 2, 1], axis=0)
    points[:25] = on_grid(unit(points[:25] + np.array([0, 0.2, 0, 0.2], np.float32)))
    centroids = np.concatenate([np.eye(4), -np.eye(4)[:1]]).astype(np.float32)  # the last one is nearest to nobody
    fit = lloyd(InMemory(points), Fit(centroids), 10)
    indices, _ = searcher(fit.centroids, "faiss", len(points))(points)
    assert len(np.unique(indices)) == 5 and len(np.unique(indices[:25])) == 1
    assert indices[0] != indices[30], "the crowd of 50 was two kinds, and has become two clusters"


def test_more_clusters_than_different_rows_do_no_harm():
    points = np.repeat(on_grid(np.eye(3, dtype=np.float32)), 5, axis=0)
    fit = lloyd(InMemory(points), random_rows(InMemory(points), 8, 0), 10)
    assert np.isfinite(fit.centroids).all() and fit.objectives[-1] == pytest.approx(1.0, abs=1e-5)


def test_rows_on_disk_are_those_in_memory(tmp_path, monkeypatch):
    from megavlm.data_curation.kmeans import rows

    monkeypatch.setattr(rows, "ROWS_PER_PIECE", 64)
    points = blobs(300)
    for piece in range(5):
        np.save(tmp_path / f"{piece:06d}.npy", points[64 * piece : 64 * (piece + 1)])
    disk = OnDisk(tmp_path, 300)
    assert disk.pieces == 5 and np.array_equal(np.concatenate(list(disk.blocks())), points)
    wanted = np.array([0, 63, 64, 255, 299])
    assert np.array_equal(disk.take(wanted), points[wanted])
    fits = [lloyd(source, random_rows(source, 6, 3), 5) for source in (disk, InMemory(points))]
    assert fits[0].centroids.tobytes() == fits[1].centroids.tobytes() and fits[0].objectives == fits[1].objectives


def test_a_spread_start_finds_rare_kinds_that_a_random_one_misses():
    rng = np.random.default_rng(0)
    kinds = np.repeat(np.arange(40), [2000, *[5] * 39])
    points = on_grid(unit(rng.normal(size=(40, 32))[kinds] * 3 + 0.1 * rng.normal(size=(len(kinds), 32)))).astype(
        np.float32
    )
    found = []
    for start in (spread_rows, random_rows):
        nearest, _ = searcher(start(InMemory(points), 40, 1).centroids, "faiss", 1)(points)
        found.append(len(set(nearest[kinds > 0])))
    assert found[0] > 30 > 20 > found[1]
    rows = spread_rows(InMemory(points), 40, 1).centroids
    assert len(np.unique(rows, axis=0)) == 40


def test_moved_keeps_a_centroid_whose_rows_cancel():
    points = np.array([[1, 0], [-1, 0]], np.float32)
    fit = Fit(np.array([[0, 1]], np.float32))
    sums = add_up([points], searcher(fit.centroids, "faiss", 2), (1, 2))
    assert np.array_equal(moved(fit, sums).centroids, fit.centroids)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.1, 0.5, 0.5, 0.9])), max_size=40))
@settings(deadline=None)
def test_ranks_are_brute_forces_order_within_each_cluster(rows):
    clusters, cosines = np.array([r[0] for r in rows], int), np.array([r[1] for r in rows], np.float32)
    ranks = ranks_in_cluster(clusters, cosines)
    for cluster in range(4):
        members = [i for i in range(len(rows)) if clusters[i] == cluster]
        wanted = sorted(members, key=lambda i: (-cosines[i], i))
        assert [int(ranks[i]) for i in wanted] == list(range(len(members)))
