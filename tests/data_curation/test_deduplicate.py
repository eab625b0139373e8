"""The deduplicate stage: what each method finds, that it is recorded, and which image stays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megavlm.data_curation.stages.deduplicate import Deduplicate


def table(rows: list[dict]) -> pa.Table:
    base = {
        "width": 10,
        "height": 10,
        "bytes": 100,
        "pdq_quality": 100,
        "cluster": 0,
        "cosine": 0.5,
        "sha256": "",
        "pdq": bytes(32),
    }
    filled = [base | {"sha256": str(i)} | row for i, row in enumerate(rows)]
    return pa.table({name: [row[name] for row in filled] for name in base})


def bits(count: int) -> bytes:
    return np.packbits([1] * count + [0] * (256 - count)).tobytes()


FEATURES = np.array([[1, 0], [1, 0], [0.8, 0.6], [0, 1]], np.float32)


def methods(stage: Deduplicate, rows: pa.Table, features: np.ndarray | None = None) -> dict:
    return {pair: "+".join(found.found_by) for pair, found in stage.find(rows, features).items()}


def test_each_method_is_recorded():
    rows = table([{"sha256": "x"}, {"sha256": "x"}, {"pdq": bits(20)}, {"pdq": bits(200)}])
    stage = Deduplicate(hash_radius=20, epsilon=0.2)
    assert methods(stage, rows, FEATURES) == {
        (0, 1): "exact+hash+features",
        (0, 2): "hash+features",
        (1, 2): "hash+features",
    }
    found = stage.find(rows, FEATURES)[0, 2]
    assert found.hash_distance == 20 and found.cosine == pytest.approx(0.8)


def test_features_that_the_hash_does_not_confirm_do_not_count():
    rows = table([{"pdq": bits(0)}, {"pdq": bits(50)}, {"pdq": bits(200)}, {"pdq": bits(256)}])
    alone = Deduplicate(hash_radius=None, epsilon=0.2)
    assert set(methods(alone, rows, FEATURES)) == {(0, 1), (0, 2), (1, 2)}
    confirmed = Deduplicate(hash_radius=None, epsilon=0.2, confirm_radius=50)
    assert methods(confirmed, rows, FEATURES) == {(0, 1): "features"}
    assert confirmed.find(rows, FEATURES)[0, 1].hash_distance == 50


def test_features_look_inside_clusters_only_and_the_hash_where_it_is_told():
    rows = table([{"cluster": 0}, {"cluster": 1}])
    same = np.array([[1, 0], [1, 0]], np.float32)
    assert methods(Deduplicate(hash_radius=31, epsilon=0.1), rows, same) == {(0, 1): "hash"}
    assert methods(Deduplicate(hash_radius=31, epsilon=0.1, hash_scope="cluster"), rows, same) == {}


@pytest.mark.parametrize(("keep", "order"), [("largest", [3, 1, 0, 2]), ("hard", [2, 0, 3, 1]), ("easy", [1, 3, 0, 2])])
def test_who_stays(keep, order):
    rows = table(
        [
            {"width": 8, "cosine": 0.4},
            {"width": 9, "cosine": 0.9},
            {"width": 8, "bytes": 90, "cosine": 0.1},
            {"width": 9, "bytes": 101, "cosine": 0.6},
        ]
    )
    assert np.argsort(Deduplicate(keep=keep).ranks(rows)).tolist() == order


def test_ties_go_to_the_earlier():
    assert Deduplicate().ranks(table([{}, {}, {}])).tolist() == [0, 1, 2]


def test_the_pairs_file_names_both_and_who_was_dropped(crawl, tools, curate, tmp_path):
    folder, copies = crawl
    curate(tools.recipe(folder))
    pairs = pq.read_table(tmp_path / "run" / "deduplicate" / "pairs.parquet").to_pylist()
    assert {(pair["key_b"], pair["key_a"]) for pair in pairs} == set(copies.items())
    assert all(pair["dropped_b"] and not pair["dropped_a"] for pair in pairs), "the original is the larger file"
    assert all("hash" in pair["found_by"] and pair["hash_distance"] <= 31 for pair in pairs)
