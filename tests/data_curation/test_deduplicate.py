"""The deduplicate stage on a run: what each method finds, that it is recorded, and which image stays."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from megavlm.data_curation import grouping
from megavlm.data_curation.deduplication.images import ranks
from megavlm.data_curation.features import read_features, unit
from megavlm.data_curation.funnel import notes
from megavlm.data_curation.hashing import distance
from megavlm.data_curation.run import CurationRun
from megavlm.data_curation.stages.deduplicate import Deduplicate
from megavlm.platform.errors import ConfigError


@pytest.fixture(scope="module")
def copies(tools, tmp_path_factory):
    """Three shards of photos, among them equal files, recompressed ones and rather similar ones; the folder."""
    folder = tmp_path_factory.mktemp("copies")
    for s in range(3):
        samples = []
        for i in range(12):
            photo = tools.photo(i // 3)
            if i % 3 == 1:
                photo = photo.crop((0, 0, 120 - 4 * s - i % 5, 100 - i % 7))
            data = tools.encode(photo, quality=95 - 20 * s - (i % 2))
            samples.append(tools.raw(f"{s:05d}{i:04d}", tools.encode(tools.photo(0)) if i == 5 else data))
        tools.write_shard(folder, f"{s:05d}", samples)
    return folder


def images(run: CurationRun) -> list[dict]:
    """Everything about each image that reached deduplication, in order, with its unit features."""
    mean = np.load(run.folder.path("cluster", "mean.npy"))
    out = []
    for shard in run.shards:
        wanted = {
            "filter": ["width", "height", "bytes", "sha256", "pdq", "pdq_quality"],
            "assign": ["cluster", "cosine"],
        }
        features = unit(read_features(run, shard.name), mean).astype(np.float64)
        rows = run.gather("deduplicate", shard.name, wanted).to_pylist()
        out += [row | {"features": vector, "shard": shard.name} for row, vector in zip(rows, features, strict=True)]
    return out


def bits(a: dict, b: dict) -> int:
    return distance(*(np.frombuffer(one["pdq"], np.uint8) for one in (a, b)))


def methods(stage: Deduplicate, a: dict, b: dict) -> list[str]:
    """Which methods call two images duplicates, read off the options."""
    found, near = [], bits(a, b)
    good = min(a["pdq_quality"], b["pdq_quality"]) >= stage.min_hash_quality
    together = a["cluster"] == b["cluster"]
    if a["sha256"] == b["sha256"]:
        found.append("exact")
    if stage.hash_radius is not None and near <= stage.hash_radius and good and (together or stage.hash_scope == "all"):
        found.append("hash")
    confirmed = stage.confirm_radius is None or near <= stage.confirm_radius
    if stage.epsilon is not None and together and confirmed and a["features"] @ b["features"] > 1 - stage.epsilon:
        found.append("features")
    return found


ORDER = {
    "largest": lambda row: (-row["width"] * row["height"], -row["bytes"]),
    "hard": lambda row: row["cosine"],
    "easy": lambda row: -row["cosine"],
}


@pytest.mark.parametrize(
    ("units", "options"),
    [
        (8, {"hash_radius": 31, "epsilon": 0.05}),
        (8, {"hash_radius": 31, "epsilon": 0.05, "keep": "hard", "hash_scope": "cluster"}),
        (8, {"hash_radius": None, "epsilon": 0.1, "keep": "easy"}),
        (8, {"hash_radius": 10, "epsilon": 0.2, "confirm_radius": 60}),
        (8, {"hash_radius": 40, "min_hash_quality": 101, "epsilon": None}),
        (100_000, {"hash_radius": 31, "epsilon": 0.05}),
        (100_000, {"hash_radius": 31, "epsilon": 0.2, "keep": "hard", "hash_scope": "cluster", "confirm_radius": 60}),
    ],
)
def test_whoever_resembles_an_earlier_one_goes_for_the_first_such(
    copies, tools, curate, tmp_path, monkeypatch, options, units
):
    monkeypatch.setattr(grouping, "ROWS_AT_ONCE", units)
    tree = tools.recipe(copies, deduplicate={"min_hash_quality": 0} | options)
    curate(tree)
    run = CurationRun.open(tmp_path / "run")
    stage = run.config.stages["deduplicate"]
    everyone = sorted(images(run), key=ORDER[stage.keep])  # stable: ties go to the earlier shard and position
    judged = {row["key"]: row for shard in run.shards for row in run.sidecar("deduplicate", shard.name).to_pylist()}
    assert len(judged) == len(everyone) == 36
    for place, image in enumerate(everyone):
        resembled = [(other, found) for other in everyone[:place] if (found := methods(stage, other, image))]
        row = judged[image["key"]]
        assert row["keep"] == (not resembled)
        if resembled:
            other, found = resembled[0]
            assert (row["duplicate_of"], row["reason"]) == (other["key"], f"duplicate_{found[0]}")
            if "hash" in found or "features" in found:
                assert row["hash_distance"] == bits(image, other)
            if "features" in found:
                assert row["similarity"] == pytest.approx(image["features"] @ other["features"], abs=1e-3)
    assert 1 <= sum(row["keep"] for row in judged.values()) < 36
    check_pairs(run, stage, {image["key"]: image for image in everyone}, judged)


def check_pairs(run, stage, everyone, judged):
    """pairs.parquet holds for each dropped image the one it went for, and whatever else is there is a pair too."""
    pairs = pq.read_table(run.folder.path("deduplicate", "pairs.parquet")).to_pylist()
    listed = {frozenset((pair["key_a"], pair["key_b"])) for pair in pairs}
    assert listed >= {frozenset((key, row["duplicate_of"])) for key, row in judged.items() if not row["keep"]}
    for pair in pairs:
        a, b = everyone[pair["key_a"]], everyone[pair["key_b"]]
        assert set(pair["found_by"].split("+")) <= set(methods(stage, a, b))
        assert [pair["dropped_a"], pair["dropped_b"]] == [not judged[pair[f"key_{letter}"]]["keep"] for letter in "ab"]
    told = notes(run, "deduplicate")
    assert told["pairs"] == len(pairs)
    assert told["pairs_hash"] == sum("hash" in pair["found_by"].split("+") for pair in pairs)


def test_the_papers_rule_keeps_one_of_each_group(copies, tools, curate, tmp_path):
    kept = {}
    for rule in ("code", "paper"):
        options = {"hash_radius": None, "epsilon": 0.1, "keep": "hard", "rule": rule}
        tree = tools.recipe(copies, cluster={"clusters": 1}, deduplicate=options)
        told = curate(tree, out=rule)
        kept[rule] = next(line for line in told["funnel"] if line["stage"] == "deduplicate")["kept"]
    run = CurationRun.open(tmp_path / "paper")
    everyone = images(run)
    vectors = np.stack([image["features"] for image in everyone])
    linked, groups = vectors @ vectors.T >= 0.9, list(range(36))
    for _ in range(36):
        groups = [min(groups[j] for j in np.flatnonzero(linked[i])) for i in range(36)]
    assert kept["paper"] == len(set(groups)) <= kept["code"]


def test_one_drawn_by_the_seed_stays(copies, tools, curate, tmp_path):
    tree = tools.recipe(copies, deduplicate={"hash_radius": 60, "epsilon": None, "keep": "random"})
    chosen = []
    for seed, out in ((3, "a"), (3, "b"), (4, "c")):
        curate(tree | {"seed": seed}, out=out)
        run = CurationRun.open(tmp_path / out)
        chosen.append(
            [row["keep"] for shard in run.shards for row in run.sidecar("deduplicate", shard.name).to_pylist()]
        )
    assert chosen[0] == chosen[1] != chosen[2]


def test_epsilon_for_a_wanted_share_comes_from_two_trials_on_a_tenth_of_the_clusters(copies, tools, curate, tmp_path):
    options = {"hash_radius": None, "wanted_fraction": 0.5, "trial_epsilons": [0.001, 0.3], "keep": "hard"}
    tree = tools.recipe(copies, cluster={"clusters": 1}, deduplicate={"epsilon": None} | options)
    curate(tree)
    run = CurationRun.open(tmp_path / "run")
    shares = []
    for trial, epsilon in enumerate((0.001, 0.3)):
        told = curate(tools.recipe(copies, cluster={"clusters": 1}, deduplicate={
            "hash_radius": None, "epsilon": epsilon, "keep": "hard"}), out=f"trial{trial}")  # fmt: skip
        assert told["funnel"][-1]["kept"]
        found = notes(CurationRun.open(tmp_path / f"trial{trial}"), "deduplicate")[
            "pairs_features"
        ]  # one for each image
        shares.append(1 - found / 36)
    wanted = 0.001 + (0.3 - 0.001) / (shares[1] - shares[0]) * (0.5 - shares[0])
    assert notes(run, "deduplicate")["epsilon"] == pytest.approx(wanted, rel=1e-6)


def test_trials_that_tell_nothing_apart_are_an_error(copies, tools, curate):
    options = {"epsilon": None, "wanted_fraction": 0.5, "trial_epsilons": [1e-9, 2e-9]}
    with pytest.raises(AssertionError, match="trial_epsilons"):
        curate(tools.recipe(copies, cluster={"clusters": 1}, deduplicate=options))


def test_options_that_do_not_fit_are_refused():
    for options in ({"epsilon": 0.1, "wanted_fraction": 0.5}, {"trial_epsilons": [0.2, 0.1]}):
        with pytest.raises(ConfigError, match="epsilon"):
            Deduplicate.parse(options, where="deduplicate")


@pytest.mark.parametrize(("keep", "order"), [("largest", [3, 1, 0, 2]), ("hard", [2, 0, 3, 1]), ("easy", [1, 3, 0, 2])])
def test_who_stays(keep, order):
    facts = {"width": [8, 9, 8, 9], "height": [10] * 4, "bytes": [100, 100, 90, 101], "cosine": [0.4, 0.9, 0.1, 0.6]}
    facts = {name: np.array(values, float) for name, values in facts.items()} | {"drawn": np.zeros(4)}
    assert np.lexsort(ranks(keep, facts)[::-1]).tolist() == order


def test_a_smaller_division_leaves_no_old_files(copies, tools, curate, tmp_path, monkeypatch):
    monkeypatch.setattr(grouping, "ROWS_AT_ONCE", 8)
    curate(tools.recipe(copies, deduplicate={"hash_scope": "all"}))
    before = {path.name for path in (tmp_path / "run" / "deduplicate" / "work").iterdir()}
    monkeypatch.setattr(grouping, "ROWS_AT_ONCE", 100)
    curate(tools.recipe(copies, cluster={"clusters": 3}, deduplicate={"hash_scope": "cluster"}))
    after = {path.name for path in (tmp_path / "run" / "deduplicate" / "work").iterdir()}
    assert "found-hashes.arrow" in before and after == {
        "by-cluster-000000.arrow", "by-digest-000000.arrow", "found-000000.arrow"}  # fmt: skip


def test_the_pairs_file_names_both_and_who_was_dropped(crawl, tools, curate, tmp_path):
    folder, copies = crawl
    curate(tools.recipe(folder))
    pairs = pq.read_table(tmp_path / "run" / "deduplicate" / "pairs.parquet").to_pylist()
    assert {(pair["key_b"], pair["key_a"]) for pair in pairs} == set(copies.items())
    assert all(pair["dropped_b"] and not pair["dropped_a"] for pair in pairs), "the original is the larger file"
    assert all("hash" in pair["found_by"] and pair["hash_distance"] <= 31 for pair in pairs)
