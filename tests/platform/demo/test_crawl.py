"""The raw data: img2dataset's layout, deterministic, with a truth that holds."""

import hashlib
import io
import json
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from megavlm.platform.demo import photos, plants
from megavlm.platform.demo.crawl import write_crawl
from megavlm.platform.shards import BadMember, scan_tar


@pytest.fixture(scope="module")
def crawl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crawl") / "raw"
    return folder, write_crawl(folder, seed=7)


def members(folder):
    for tar in sorted(folder.glob("*.tar")):
        for item in scan_tar(tar):
            yield tar, item


def test_the_layout_is_img2datasets(crawl):
    folder, truth = crawl
    for tar in folder.glob("*.tar"):
        rows = pq.read_table(tar.with_suffix(".parquet")).to_pylist()
        stats = json.loads(tar.with_name(tar.stem + "_stats.json").read_text())
        assert stats["count"] == len(rows)
        assert stats["successes"] == sum(row["status"] == "success" for row in rows)
        assert all(row["key"].startswith(tar.stem) and len(row["key"]) == 9 for row in rows)


def test_every_planted_copy_and_its_original_are_there(crawl):
    folder, truth = crawl
    keys = {item.key for _, item in members(folder) if not isinstance(item, BadMember)}
    for copy, plant in truth["copies"].items():
        assert {copy, plant["of"]} <= keys
    assert len({plant["of"] for plant in truth["copies"].values()}) == len(truth["copies"])


def test_the_same_seed_gives_the_same_bytes(crawl, tmp_path):
    folder, _ = crawl
    write_crawl(tmp_path / "again", seed=7)
    for path in sorted(folder.iterdir()):
        again = tmp_path / "again" / path.name
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(again.read_bytes()).digest(), path.name


def test_crops_of_a_photograph_do_not_overlap():
    rng = np.random.default_rng(0)
    seen = set()
    for name in photos.PHOTOS:
        for caption, image in photos._crops_of(name, photos.photo(name), rng):
            assert caption not in seen
            assert max(image.size) <= photos.CELL and min(image.size) >= photos.SMALLEST
            seen.add(caption)
    assert len(seen) > 150


def test_the_damaged_shard_is_damaged_as_the_truth_says(crawl):
    folder, truth = crawl
    reasons = {item.reason for tar, item in members(folder) if isinstance(item, BadMember)}
    assert reasons == set(truth["damaged"].values())


@pytest.mark.parametrize("kind", plants.COPIES)
def test_a_copy_looks_like_its_original(kind):
    image = photos.crops(np.random.default_rng(1))[20][1]
    copy = Image.open(io.BytesIO(plants.COPIES[kind](image, np.random.default_rng(2)))).convert("RGB")
    a, b = (np.asarray(x.resize((32, 32)), dtype=float) for x in (image, copy))
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > (0.8 if kind == "cropped" else 0.9)


def test_the_bomb_is_small_and_claims_to_be_large():
    data = plants.bomb()
    assert len(data) < 200
    with pytest.raises(Image.DecompressionBombError, match="900000000 pixels"):
        Image.open(io.BytesIO(data))


def test_no_member_of_a_good_shard_repeats(crawl):
    folder, truth = crawl
    for tar in sorted(folder.glob("*.tar"))[:-1]:
        with tarfile.open(tar) as archive:
            names = archive.getnames()
        assert len(names) == len(set(names))
