"""The stages cluster, assign and select on a run, against brute force."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megavlm.data_curation import grouping
from megavlm.data_curation.features import read_features, unit, write_features
from megavlm.data_curation.fingerprint import task_fingerprints
from megavlm.data_curation.funnel import notes
from megavlm.data_curation.kmeans import rows as kmeans_rows
from megavlm.data_curation.kmeans import sample as kmeans_sample
from megavlm.data_curation.kmeans.sample import Sample
from megavlm.data_curation.kmeans.training import Training
from megavlm.data_curation.run import CurationRun
from megavlm.data_curation.shuffle import read_part
from megavlm.data_curation.stages.assign import store
from megavlm.data_curation.stages.base import Outcome
from megavlm.data_curation.stages.cluster import Cluster
from megavlm.data_curation.stages.select import Select
from megavlm.platform.errors import ConfigError


@pytest.fixture
def small_units(monkeypatch):
    """Pieces, groups and buckets of a few rows, so that thirty images make many of them."""
    monkeypatch.setattr(kmeans_rows, "ROWS_PER_PIECE", 5)
    monkeypatch.setattr(kmeans_sample, "ROWS_PER_PIECE", 5)
    monkeypatch.setattr(grouping, "ROWS_AT_ONCE", 13)


def centroids_of(run):
    return {path.name: path.read_bytes() for path in sorted((run / "cluster").glob("*.npy"))}


def everything(run: CurationRun):
    """Keys, features, centroids and mean of a whole run."""
    names = [shard.name for shard in run.shards]
    keys = [key for name in names for key in run.sidecar("embed", name)["key"].to_pylist()]
    features = np.concatenate([read_features(run, name) for name in names])
    return keys, features, *(np.load(run.folder.path("cluster", f"{name}.npy")) for name in ("centroids", "mean"))


@pytest.mark.parametrize("units", ["small", "one"])
def test_a_run_assigns_and_selects_as_brute_force_does(crawl, tools, curate, tmp_path, request, units):
    if units == "small":
        request.getfixturevalue("small_units")
    curate(tools.recipe(crawl[0], select={"nearest": 3}))
    run = CurationRun.open(tmp_path / "run")
    keys, features, centroids, mean = everything(run)
    assert np.allclose(mean, features.mean(axis=0), atol=1e-6), "center: true"
    similar = unit(features, mean) @ centroids.T
    cluster, cosine = dict(zip(keys, similar.argmax(1), strict=True)), dict(zip(keys, similar.max(1), strict=True))
    names = [shard.name for shard in run.shards]
    rows = [row for name in names for row in pq.read_table(run.sidecar_path("select", name)).to_pylist()]
    assert len(rows) == 33 and all(row["cluster"] == cluster[row["key"]] for row in rows)
    for number in set(cluster.values()):
        members = [row for row in rows if row["cluster"] == number]
        best = sorted((cosine[row["key"]] for row in members), reverse=True)[:3]
        kept = sorted((cosine[row["key"]] for row in members if row["keep"]), reverse=True)
        assert kept == pytest.approx(best, abs=1e-5)
        assert sorted(row["rank"] for row in members) == list(range(len(members)))


def test_features_by_cluster_are_those_of_the_shards(crawl, tools, curate, tmp_path, small_units):
    curate(tools.recipe(crawl[0]))
    run = CurationRun.open(tmp_path / "run")
    whole = grouping.grouping(run)
    assert whole.buckets == 3 and len(whole.groups) == 3
    seen = []
    for bucket in range(whole.buckets):
        part = read_part(store(run, whole), bucket)
        assert (whole.bucket(part["cluster"]) == bucket).all()
        for shard, row, cluster, features in zip(
            *(part[n] for n in ("shard", "row", "cluster", "features")), strict=True
        ):
            name = run.shards[shard].name
            assert np.array_equal(features, read_features(run, name)[row])
            assert run.sidecar("assign", name)["cluster"][int(row)].as_py() == cluster
            seen.append((shard, row))
    assert len(seen) == len(set(seen)) == 36


def with_features(run: CurationRun, rows: int) -> None:
    """Replace what embed wrote by more rows than one piece holds."""
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(9, 6))
    for task, name in enumerate(run.plan.names):
        features = kinds[rng.integers(0, 9, rows)] + rng.normal(size=(rows, 6))
        write_features(run.folder.path("embed", f"{name}.zarr"), features)
        keys = [f"{name}{i}" for i in range(rows)]
        table = pa.table({"key": keys, "keep": [True] * rows, "reason": pa.nulls(rows, pa.string())})
        run.write_sidecar("embed", name, table)
        prints = task_fingerprints(run, "embed", [task])
        last = run.ledger.withdraw("embed", run.ledger.state("embed", prints)[task])
        run.ledger.mark("embed", last, prints[task], Outcome(rows, rows), 0.0)


def test_two_processes_that_share_the_iterations_give_the_same_bytes_as_one(crawl, tools, curate, tmp_path):
    """40,000 rows are three pieces, so that both have some. What comes before is done by one process."""
    trained = {}
    for parts, executor in ((1, "in_process"), (2, "local")):
        tree = tools.recipe(crawl[0], cluster={"clusters": 5, "center": True, "iterations": 1})
        tree["curation"]["stages"] = {
            n: tree["curation"]["stages"][n] for n in ("ingest", "filter", "embed", "cluster")
        }
        curate(tree, out=executor)
        with_features(CurationRun.open(tmp_path / executor), rows=14_000)
        tree["curation"]["stages"]["cluster"] |= {"iterations": 2, "train_on": 40_000, "parts": parts}
        tree["curation"]["executor"] = {"name": executor, "workers": 2}
        curate(tree, out=executor)
        trained[executor] = centroids_of(tmp_path / executor)
        ran = notes(CurationRun.open(tmp_path / executor), "cluster")
        assert (ran["images"], ran["trained_on"], ran["iterations_run"]) == (42_000, 40_000, 2)
    assert trained["local"] == trained["in_process"]


LEVELS = {"method": "hierarchical", "levels": [{"clusters": 2, "resampling": 1}]}


@pytest.mark.parametrize(("parts", "more"), [(2, {}), (20, {}), (5, LEVELS)])
def test_any_number_of_parts_gives_the_same_bytes(crawl, tools, curate, tmp_path, small_units, parts, more):
    options = {"clusters": 4, "center": True, "iterations": 6} | more
    curate(tools.recipe(crawl[0], cluster=options))
    curate(tools.recipe(crawl[0], cluster=options | {"parts": parts}), out="parts")
    whole = centroids_of(tmp_path / "run")
    assert set(whole) >= {"centroids.npy", "mean.npy"} and centroids_of(tmp_path / "parts") == whole
    told = [notes(CurationRun.open(tmp_path / out), "cluster") for out in ("run", "parts")]
    assert told[0] == told[1] and told[0]["stopped"] in ("converged", "iterations")
    assert not list((tmp_path / "parts" / "cluster").glob("training-*")), "what only the training needed is gone"


def test_broken_off_in_any_iteration_it_goes_on_from_there(crawl, tools, curate, tmp_path, small_units, monkeypatch):
    tree = tools.recipe(crawl[0], cluster={"clusters": 6, "parts": 3, "iterations": 5})
    curate(tree, out="whole")
    add_for = Training.add_for

    def dies(self, iteration, part):
        if (iteration, part) in deaths:
            deaths.remove((iteration, part))
            raise OSError("gone")
        done.append((iteration, part))
        add_for(self, iteration, part)

    deaths, done = {(0, 1), (1, 2)}, []
    monkeypatch.setattr(Training, "add_for", dies)
    for _ in range(2):
        curate(tree, code=1)
    curate(tree)
    assert centroids_of(tmp_path / "run") == centroids_of(tmp_path / "whole")
    assert len(done) == len(set(done)), "no part of an iteration was done twice"


def test_a_sample_is_drawn_evenly_without_repetition_and_told(crawl, tools, curate, tmp_path, small_units):
    curate(tools.recipe(crawl[0], cluster={"clusters": 4, "train_on": 20}))
    run = CurationRun.open(tmp_path / "run")
    told = notes(run, "cluster")
    assert (told["images"], told["trained_on"], told["clusters"]) == (36, 20, 4)
    assert told["iterations_run"] <= told["iterations_asked"] == 20
    sample = Sample(run, np.array([12, 12, 12]), 20)
    drawn = [sample.chosen(shard) for shard in range(3)]
    assert [len(rows) for rows in drawn] == [6, 7, 7] and all(len(set(rows)) == len(rows) for rows in drawn)
    wanted = [read_features(run, run.shards[shard].name)[rows] for shard, rows in enumerate(drawn)]
    assert np.array_equal(np.concatenate([sample.piece(piece) for piece in range(4)]), np.concatenate(wanted))
    other = Sample(CurationRun(run.folder, run.config, run.seed + 1), sample.counts, 20)
    assert not all(np.array_equal(other.chosen(shard), drawn[shard]) for shard in range(3))


@pytest.mark.parametrize("leaf", ["closest", "random"])
def test_levels_and_a_balanced_selection(crawl, tools, curate, tmp_path, small_units, leaf):
    levels = [{"clusters": 5, "resampling": 1}, {"clusters": 2, "resampling": 1}]
    cluster = {"clusters": 9, "method": "hierarchical", "levels": levels, "closest": 2}
    tree = tools.recipe(crawl[0], cluster=cluster)
    tree["curation"]["stages"]["select"] = {"method": "balanced", "target": 14, "leaf": leaf}
    told = curate(tree)
    assert next(line for line in told["funnel"] if line["stage"] == "select")["kept"] == 14
    run = CurationRun.open(tmp_path / "run")
    parents = [np.load(run.folder.path("cluster", f"parents-{level}.npy")) for level in (1, 2)]
    assert [len(up) for up in parents] == [9, 5] and set(parents[1]) <= {0, 1}
    assert notes(run, "cluster")["levels"] == [9, 5, 2]
    rows = [row for shard in run.shards for row in run.sidecar("select", shard.name).to_pylist()]
    tops = {top: [row for row in rows if parents[1][parents[0][row["cluster"]]] == top] for top in set(parents[1])}
    kept = {top: sum(row["keep"] for row in members) for top, members in tops.items()}
    for top in tops:
        assert kept[top] >= max(kept.values()) - 1 or kept[top] == len(tops[top])
    assert {row["reason"] for row in rows} == {None, "over_quota"}
    for number in {row["cluster"] for row in rows}:
        members = sorted((row for row in rows if row["cluster"] == number), key=lambda row: row["rank"])
        assert [row["keep"] for row in members] == sorted((row["keep"] for row in members), reverse=True)
        falls = [row["cosine"] for row in members] == sorted((row["cosine"] for row in members), reverse=True)
        assert falls or leaf == "random"


def test_fewer_levels_leave_no_old_files(crawl, tools, curate, tmp_path):
    curate(tools.recipe(crawl[0], cluster={"clusters": 9, "method": "hierarchical", "levels": [{"clusters": 3}]}))
    assert {"parents-1.npy", "centroids-2.npy"} < set(centroids_of(tmp_path / "run"))
    curate(tools.recipe(crawl[0], cluster={"clusters": 9}))
    assert set(centroids_of(tmp_path / "run")) == {"centroids.npy", "mean.npy"}


def test_options_that_do_not_fit_are_refused():
    for options in (
        {"clusters": 9, "levels": [{"clusters": 3}]},
        {"clusters": 9, "method": "hierarchical"},
        {"clusters": 3, "method": "hierarchical", "levels": [{"clusters": 9}]},
    ):
        with pytest.raises(ConfigError, match="level"):
            Cluster.parse(options, where="cluster")
    for options in ({}, {"target": 3}, {"nearest": 3, "target": 3}, {"method": "balanced", "nearest": 3}):
        with pytest.raises(ConfigError, match="method"):
            Select.parse(options, where="select")


def test_too_many_clusters_are_refused_before_anything_is_read(crawl, tools, curate, tmp_path, capsys):
    for options, words in (({"clusters": 99}, "99 clusters for 36"), ({"clusters": 9, "train_on": 8}, "trained on 8")):
        tree = tools.recipe(crawl[0], cluster=options)
        with pytest.raises(AssertionError, match=words):
            curate(tree)


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
