"""K-means, assignment and nearest-n against brute force."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megavlm.data_curation.features import read_features, unit, write_features
from megavlm.data_curation.run import CurationRun
from megavlm.data_curation.stages.cluster import kmeans, nearest
from megavlm.data_curation.stages.select import ranks_in_cluster


def blobs(n: int = 400, k: int = 7, d: int = 16) -> np.ndarray:
    rng = np.random.default_rng(0)
    return unit(rng.normal(size=(k, d))[rng.integers(0, k, n)] + 0.2 * rng.normal(size=(n, d))).astype(np.float32)


def test_assignment_is_brute_forces_nearest_centroid():
    points = blobs()
    centroids, _ = kmeans(points, 7, 20, seed=1, per_centroid=256)
    indices, cosines = nearest(points, centroids)
    table = points.astype(np.float64) @ centroids.astype(np.float64).T
    assert np.array_equal(indices, table.argmax(axis=1))
    assert np.allclose(cosines, table.max(axis=1), atol=1e-6)


def test_a_converged_centroid_is_the_mean_direction_of_its_members():
    points = blobs()
    centroids, ran = kmeans(points, 7, 100, seed=1, per_centroid=256)
    assert 1 < ran < 100, "FAISS stops when nothing changes; the count is of iterations run, not asked for"
    indices, _ = nearest(points, centroids)
    for cluster in np.unique(indices):
        mean = points[indices == cluster].mean(axis=0)
        assert np.allclose(centroids[cluster], mean / np.linalg.norm(mean), atol=1e-4)
    assert np.allclose(np.linalg.norm(centroids, axis=1), 1.0, atol=1e-6)


def test_the_same_seed_gives_the_same_centroids():
    first, second = (kmeans(blobs(), 5, 10, seed=4, per_centroid=256)[0] for _ in range(2))
    assert np.array_equal(first, second)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.1, 0.5, 0.5, 0.9])), max_size=40))
@settings(deadline=None)
def test_ranks_are_brute_forces_order_within_each_cluster(rows):
    clusters, cosines = np.array([r[0] for r in rows], int), np.array([r[1] for r in rows], np.float32)
    ranks = ranks_in_cluster(clusters, cosines)
    for cluster in range(4):
        members = [i for i in range(len(rows)) if clusters[i] == cluster]
        wanted = sorted(members, key=lambda i: (-cosines[i], i))
        assert [int(ranks[i]) for i in wanted] == list(range(len(members)))


def test_a_run_assigns_and_selects_as_brute_force_does(crawl, tools, curate, tmp_path):
    curate(tools.recipe(crawl[0], select={"nearest": 3}))
    run = CurationRun.open(tmp_path / "run")
    names = [shard.name for shard in run.shards]
    centroids, mean = (np.load(tmp_path / "run" / "cluster" / f"{name}.npy") for name in ("centroids", "mean"))
    features = np.concatenate([read_features(run, name) for name in names])
    assert np.allclose(mean, features.mean(axis=0), atol=1e-6), "center: true"
    similar = unit(features, mean) @ centroids.T
    keys = [key for name in names for key in run.sidecar("embed", name)["key"].to_pylist()]
    cluster, cosine = dict(zip(keys, similar.argmax(1), strict=True)), dict(zip(keys, similar.max(1), strict=True))
    rows = [row for name in names for row in pq.read_table(run.sidecar_path("select", name)).to_pylist()]
    assert all(row["cluster"] == cluster[row["key"]] for row in rows)
    for number in set(cluster.values()):
        members = [row for row in rows if row["cluster"] == number]
        best = sorted((cosine[row["key"]] for row in members), reverse=True)[:3]
        kept = sorted((cosine[row["key"]] for row in members if row["keep"]), reverse=True)
        assert kept == pytest.approx(best, abs=1e-5)


def test_features_survive_zarr_to_half_precision(tmp_path):
    import zarr

    features = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    for _ in range(2):  # the second write replaces the first
        write_features(tmp_path / "x.zarr", features)
    stored = zarr.open_array(tmp_path / "x.zarr", mode="r")
    assert stored.metadata.zarr_format == 3 and stored.dtype == np.float16
    assert np.array_equal(stored[...], features.astype(np.float16))
    assert [path.name for path in tmp_path.iterdir()] == ["x.zarr"]


def test_a_zero_row_stays_zero():
    assert np.array_equal(unit(np.zeros((1, 3), np.float32)), np.zeros((1, 3)))
