"""2,000 images through the whole pipeline, and 6,000 vectors with planted cosines, judged by brute force.

The campaign curation_20k does the same at ten times the size. The radius of the hash was chosen on pictures of other
seeds (benchmarks/campaigns/hash_radius.md), so no copy here helped to choose it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from megavlm.data_curation.funnel import notes
from megavlm.data_curation.run import CurationRun
from megavlm.platform.cli import main

CAMPAIGNS = Path(__file__).resolve().parents[2] / "benchmarks" / "campaigns"
IMAGES, SEED, SIDES = 2000, 31, (128, 240)  # small pictures: their number is what counts here
CLUSTERS, NEAREST = 40, 30  # the icons are more than the nearest 30
BOUND = 0.99
HERE = {"name": "in_process", "workers": 0}


def imported(name: str) -> Any:
    """A module beside the campaigns, which import it by this name."""
    sys.path.insert(0, str(CAMPAIGNS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(CAMPAIGNS))


def megavlm(*words: str) -> dict[str, Any]:
    """What a verb tells in JSON."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as err:
        assert main([*words, "--json"]) == 0, err.getvalue()
    return json.loads(out.getvalue())


@pytest.fixture(scope="module")
def curated(tmp_path_factory) -> tuple[Path, Path, dict[str, Any], Any]:
    """(raw, run, truth, the module of judgements)."""
    folder, crawl, judge = tmp_path_factory.mktemp("size"), imported("at_size.crawl"), imported("at_size.curated")
    truth = crawl.write_crawl(folder / "raw", crawl.Crawl(IMAGES, SEED, SIDES))
    tree = judge.recipe(
        folder / "raw", CLUSTERS, NEAREST, {"image_size": 56, "pooling": "grid", "batch_size": 64}, HERE
    )
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    megavlm("curate", "run", str(folder / "recipe.yaml"), "--out", str(folder / "run"))
    return folder / "raw", folder / "run", truth, judge


def test_the_originals_are_different_pictures(curated):
    """Else nobody could say which pairs are right: no two are as near as copies by their hashes and their pixels."""
    raw, run, truth, _ = curated
    judge = imported("at_size.likeness")
    told = judge.likeness(raw, run, truth)
    assert told["originals"] == len(truth["originals"]) > 0.85 * IMAGES and len(set(truth["originals"].values())) == 7
    assert told["pairs alike in both"] == 0 and told["correlation of copies"] > 0.9
    twice = np.repeat(np.eye(3, 256, dtype=np.uint8), 2, axis=0)
    pixels = np.repeat(np.eye(3, 8, dtype=np.float32), 2, axis=0)
    assert judge.closest(twice, pixels, 0.9) == {"least bits": 0, "greatest correlation": 1, "pairs alike in both": 3}


def test_the_funnel_adds_up_and_every_bad_file_has_its_reason(curated):
    raw, run, truth, judge = curated
    assert judge.funnel_faults(run, truth) == []
    assert len({bad["reason"] for bad in truth["bad"].values()}) == 9 and len(truth["lost"]) == 20


def test_copies_are_found_and_nothing_else(curated):
    _, run, truth, judge = curated
    told = judge.duplicate_scores(run, truth)
    assert min(share for name, share in told.items() if name.startswith(("recall", "precision"))) >= BOUND, told
    assert len(truth["copies"]) == 160 and {"recall resized", "recall exact", "precision duplicate_hash"} < told.keys()


def test_every_cluster_keeps_its_nearest_and_of_the_icons_one_is_left(curated):
    _, run, truth, judge = curated
    faults, told = judge.selection_faults(run, truth, NEAREST)
    assert faults == [] and told["clusters larger than nearest"] > CLUSTERS / 4
    assert judge.duplicate_scores(run, truth)["icons kept"] == 1
    assert told["icons before"] >= NEAREST / 2 and told["icons after"] <= 1, "the trap is one"


def test_run_and_report_say_that_the_weights_are_random(curated):
    _, run, _, _ = curated
    told = notes(CurationRun.open(run), "embed")
    assert "random weights" in told["weights"] and not told["pretrained"] and "eva02" in told["model"]
    megavlm("report", str(run))
    assert "random weights" in (run / "report.html").read_text()


def test_what_judges_notices_one_wrong_image_and_one_wrong_count(curated, tmp_path):
    _, run, truth, judge = curated
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("by_cluster", "work"))
    for path in sorted((tmp_path / "run" / "select").glob("*.parquet")):
        table = pq.read_table(path)
        keep = table["keep"].to_pylist()
        if False in keep and True in keep:
            keep[keep.index(False)] = True
            pq.write_table(table.set_column(table.schema.get_field_index("keep"), "keep", pa.array(keep)), path)
            break
    assert len(judge.selection_faults(tmp_path / "run", truth, NEAREST)[0]) == 1
    funnel = tmp_path / "run" / "funnel.json"
    lines = json.loads(funnel.read_text())
    lines[1]["dropped"]["too_small"] += 1
    funnel.write_text(json.dumps(lines))
    assert len(judge.funnel_faults(tmp_path / "run", truth)) == 2, "the sum, and the list of the rejected"


def test_a_crawl_is_the_same_whoever_writes_which_shard(tmp_path):
    crawl = imported("at_size.crawl")
    made = crawl.Crawl(80, SEED, (64, 80), per_shard=40)
    crawl.write_crawl(tmp_path / "whole", made)
    (tmp_path / "parts").mkdir()
    crawl.write_shard(tmp_path / "parts", made, 1)
    crawl.write_crawl(tmp_path / "parts", made)
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert len(files) == 7 and all(
        (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes() for name in files
    )
    assert made.truth() != crawl.Crawl(80, SEED + 1, (64, 80), per_shard=40).truth()


@pytest.mark.parametrize("rule", ["code", "paper"])
def test_pairs_just_within_epsilon_are_found_and_those_just_beyond_are_not(tmp_path, rule):
    planted, judge = imported("at_size.planted"), imported("at_size.curated")
    vectors, pairs = planted.Pairs(count=6000, width=512, seed=8).vectors()
    tree = planted.recipe(tmp_path, clusters=20, deduplicate={"rule": rule}, executor=HERE)
    file = planted.plant(tmp_path, tree, vectors, per_shard=2000)
    megavlm("curate", "run", str(file), "--out", str(tmp_path / "run"))
    keys = [key for shard in range(3) for key in planted.keys_of(shard, 2000)]
    rows = judge.rows(tmp_path / "run", "deduplicate", ["key", "keep", "duplicate_of"])
    told = planted.scores(rows, keys, pairs)
    assert told["pairs"] == 300 and len(rows) == 6000
    assert told["recall"] >= BOUND and told["precision"] >= BOUND, told


def test_planted_cosines_are_what_they_are_said_to_be():
    vectors, pairs = imported("at_size.planted").Pairs(count=6000, width=512, seed=8).vectors()
    stored = vectors.astype(np.float16).astype(np.float64)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    similar = stored @ stored.T
    np.fill_diagonal(similar, 0)
    cosines = similar[pairs[:, 0], pairs[:, 1]]
    assert ((cosines > 0.95) == (pairs[:, 2] == 1)).all() and (np.abs(cosines - 0.95) < 0.021).all()
    assert (similar > 0.95).sum() == 2 * pairs[:, 2].sum(), "no other two are as near"
