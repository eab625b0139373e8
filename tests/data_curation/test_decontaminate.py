"""Planted leaks of evaluation images: all found, with the set and the item named, and nothing else dropped."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from megavlm.data_curation.evaluation_images import Known
from megavlm.data_curation.hashing import distance

LEAKS = 50


def altered(image: Image.Image, number: int, tools) -> bytes:
    """What the web makes of a picture: the same bytes, recompressed, resized, both, another format."""
    smaller = image.resize((int(image.width * 0.6), int(image.height * 0.6)), Image.Resampling.LANCZOS)
    larger = image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC)
    makers = (
        lambda: tools.encode(image),
        lambda: tools.encode(image, quality=30),
        lambda: tools.encode(smaller, quality=80),
        lambda: tools.encode(larger, quality=60),
        lambda: tools.encode(image, "PNG"),
    )
    return makers[number % len(makers)]()


@pytest.fixture
def leaky(tools, tmp_path):
    """Two evaluation sets of 30 images each, and a crawl in which the first 50 leaked among 50 clean ones."""
    originals = [tools.photo(5000 + i, 200, 160) for i in range(60)]
    for i, image in enumerate(originals):
        folder = tmp_path / ("even" if i % 2 == 0 else "odd")
        folder.mkdir(exist_ok=True)
        (folder / f"item{i}.jpg").write_bytes(tools.encode(image))
    leaks = [tools.raw(f"leak{i}", altered(originals[i], i, tools)) for i in range(LEAKS)]
    clean = [tools.raw(f"clean{i}", tools.encode(tools.photo(i, 200, 160))) for i in range(LEAKS)]
    for shard in range(2):
        tools.write_shard(tmp_path / "raw", f"0000{shard}", [*leaks[shard::2], *clean[shard::2]])
    against = {"even": str(tmp_path / "even"), "odd": {"kind": "folder", "path": str(tmp_path / "odd")}}
    tree = tools.recipe(tmp_path / "raw")
    tree["curation"]["stages"] = {
        "ingest": {},
        "filter": {"min_side": 50},
        "decontaminate": {"against": against},
    }
    return tree


def test_all_planted_leaks_are_found_and_no_clean_image_is_dropped(leaky, curate, tmp_path):
    line = curate(leaky)["funnel"][-1]
    assert (line["in"], line["kept"], line["dropped"]) == (2 * LEAKS, LEAKS, {"evaluation_image": LEAKS})
    rows = [
        row
        for path in (tmp_path / "run" / "decontaminate").glob("*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]
    for row in rows:
        leaked = row["key"].startswith("leak")
        assert row["keep"] == (not leaked)
        if leaked:
            number = int(row["key"].removeprefix("leak"))
            found = row["detail"].split(",")[0]
            assert found == f"{'odd' if number % 2 else 'even'}: 00000/item{number}"
            assert ("equal bytes" in row["detail"]) == (number % 5 == 0)
    assert len(rows) == 2 * LEAKS
    rejected = pq.read_table(tmp_path / "run" / "rejected.parquet").to_pylist()
    assert sum(row["reason"] == "evaluation_image" for row in rejected) == LEAKS


def test_under_a_radius_of_zero_equal_bytes_still_go_and_others_stay(leaky, curate, tmp_path):
    curate(leaky)
    sets = tmp_path / "run" / "decontaminate" / "sets"
    before = {path.name: path.read_bytes() for path in sets.iterdir()}
    line = curate(leaky, "curation.stages.decontaminate.radius=0")["funnel"][-1]
    assert {path.name: path.read_bytes() for path in sets.iterdir()} == before
    exact = sum(number % 5 == 0 for number in range(LEAKS))
    assert exact <= line["dropped"]["evaluation_image"] < LEAKS


def test_the_nearest_is_the_nearest():
    rng = np.random.default_rng(3)
    known = rng.integers(0, 256, (40, 32), dtype=np.uint8)
    asked = rng.integers(0, 256, (25, 32), dtype=np.uint8)
    found = Known({}, [str(i) for i in range(40)], known).nearest([row.tobytes() for row in asked])
    for place, row in enumerate(asked):
        bits = [distance(row, other) for other in known]
        name, least = found[place]
        assert least == min(bits) == bits[int(name)]
    assert Known({}, [], known[:0]).nearest([asked[0].tobytes()]) == {}


@pytest.mark.parametrize("against", [{}, {"../x": "y"}, ["x"], {"a": {"kind": "none", "path": "x"}}])
def test_wrong_sets_are_refused(against, tools, curate, tmp_path):
    tree = tools.recipe(tmp_path)
    tree["curation"]["stages"] = {"ingest": {}, "filter": {}, "decontaminate": {"against": against}}
    assert "against" in curate(tree, code=2)["error"]["where"]


def test_a_set_without_images_is_refused_and_an_odd_one_is_noted(leaky, curate, tmp_path):
    (tmp_path / "even" / "broken.jpg").write_bytes(b"no image")
    assert curate(leaky)["finished"]
    told = pq.read_table(tmp_path / "run" / "decontaminate" / "sets" / "even.parquet").to_pylist()
    assert [row["item"] for row in told if row["pdq"] is None] == ["00000/broken"]
    (tmp_path / "nothing").mkdir()
    leaky["curation"]["stages"]["decontaminate"]["against"] = {"none": str(tmp_path / "nothing")}
    assert "nothing" in curate(leaky, out="other", code=1)["error"]["what"]
