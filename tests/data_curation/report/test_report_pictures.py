"""Mosaics, pairs and groups show the images that they are said to show: pixels against the raw files."""

from __future__ import annotations

import io
import re
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from megavlm.data_curation.report import duplicates
from megavlm.data_curation.report.clusters import measured, named, nearest
from megavlm.data_curation.report.duplicates import ends, largest_groups, telling
from megavlm.data_curation.report.mosaic import COLUMNS, TILE, corner, mosaic
from megavlm.data_curation.report.pictures import Pictures, encoded


def raw(curated, name: tuple[str, str]) -> Image.Image:
    with tarfile.open(curated.parent / "raw" / f"{name[0]}.tar") as tar:
        return Image.open(io.BytesIO(tar.extractfile(f"{name[1]}.jpg").read())).convert("RGB")


def selected(curated):
    parts = []
    for path in sorted((curated / "select").glob("*.parquet")):
        parts.append(pq.read_table(path).to_pandas().assign(shard=path.stem))
    import pandas

    return pandas.concat(parts, ignore_index=True)


def tile(picture: np.ndarray, place: int, across: int) -> np.ndarray:
    left, top = corner(place, across)
    return picture[top : top + TILE, left : left + TILE].astype(float)


def likeness(picture: np.ndarray, image: Image.Image) -> float:
    """Mean difference of gray levels: lossy copies of one photo lie below ten, two photos far above."""
    return float(np.abs(picture - np.asarray(ImageOps.fit(image, (TILE, TILE)), float)).mean())


def test_a_mosaic_shows_the_nearest_images_nearest_first(curated, html, shown):
    rows = selected(curated)
    mosaics = {alt: data for alt, data in shown(html).items() if "nearest first" in alt}
    assert len(mosaics) >= 3
    for alt, picture in mosaics.items():
        cluster = int(re.search(r"cluster (\d+)\.", alt)[1])
        members = rows[rows.cluster == cluster].sort_values("cosine", ascending=False, kind="stable")
        assert f"{len(members)} images, {members.keep.sum()} selected" in alt
        assert f"cosine to the centroid {members.cosine.mean():.3f}" in alt
        names = list(zip(members.shard, members.key, strict=True))[: 3 * COLUMNS]
        across = min(COLUMNS, len(names))
        for place, name in enumerate(names):
            own = likeness(tile(picture, place, across), raw(curated, name))
            others = [likeness(tile(picture, place, across), raw(curated, other)) for other in names if other != name]
            assert own < 12 and all(own < other for other in others), (alt, place)


def test_the_named_clusters_are_what_they_are_called(curated, view):
    found, rows = measured(view(curated), "select"), selected(curated)
    sizes = rows.groupby("cluster").size()
    assert {cluster: int(found.sizes[cluster]) for cluster in sizes.index} == sizes.to_dict()
    means = rows.groupby("cluster").cosine.mean()
    titles = named(found)
    by_title = {title: cluster for cluster, names in titles.items() for title in names.lower().split(", ")}
    assert sizes[by_title["largest"]] == sizes.max() and sizes[by_title["smallest"]] == sizes.min()
    full = means[sizes >= 8]
    assert (by_title["tightest"], by_title["loosest"]) == (full.idxmax(), full.idxmin())


def test_the_nearest_are_found_over_shards_by_brute_force(curated, view):
    rows = selected(curated)
    for cluster, names in nearest(view(curated), "select", [0, 1, 2, 3]).items():
        members = rows[rows.cluster == cluster].sort_values("cosine", ascending=False, kind="stable")
        assert names == list(zip(members.shard, members.key, strict=True))[: 3 * COLUMNS]


def test_pairs_show_who_stays_and_who_goes_with_the_evidence(curated, html, shown):
    pairs, pictures = pq.read_table(curated / "deduplicate" / "pairs.parquet").to_pylist(), shown(html)
    sidecars = [path for path in (curated / "deduplicate").glob("*.parquet") if path.name != "pairs.parquet"]
    stays = {row["key"]: row["keep"] for path in sidecars for row in pq.read_table(path).to_pylist()}
    for pair in telling(pq.read_table(curated / "deduplicate" / "pairs.parquet")):
        first, second = ends(pair)
        assert stays[first[1]] and not stays[second[1]]
        for name, fate in ((first, "kept"), (second, "dropped")):
            picture = next(data for alt, data in pictures.items() if alt.startswith(f"{fate}: {name[1]}, 120 x 100 px"))
            assert (
                likeness(np.asarray(ImageOps.fit(Image.fromarray(picture), (TILE, TILE)), float), raw(curated, name))
                < 12
            )
    bits = [pair["hash_distance"] for pair in pairs if pair["hash_distance"] is not None]
    assert f"{max(bits)} of 256 bits differ (limit 31)" in html and "equal bytes" in html


def table(*rows: tuple) -> pa.Table:
    names = ("shard_a", "key_a", "shard_b", "key_b", "found_by", "hash_distance", "cosine", "dropped_a", "dropped_b")
    return pa.table({name: [row[place] for row in rows] for place, name in enumerate(names)})


def test_the_weakest_pairs_of_every_method_come_first():
    rows = [("s", f"a{i}", "s", f"b{i}", "hash", i, None, False, True) for i in range(40)]
    rows += [("s", f"c{i}", "s", f"d{i}", "features", None, 0.9 + i / 1000, True, False) for i in range(30)]
    rows += [("s", "e", "s", "f", "exact+hash", 0, None, False, True)]
    rows += [("s", "g", "s", "h", "hash+features", 7, 0.93, True, True)]
    found = telling(table(*rows))
    hashes = [pair["hash_distance"] for pair in found if pair["found_by"] == "hash"]
    cosines = [pair["cosine"] for pair in found if pair["found_by"] == "features"]
    assert hashes[:4] == [39, 38, 37, 36] and len(hashes) == 7 and hashes == sorted(hashes, reverse=True)
    assert cosines[:4] == pytest.approx([0.9, 0.901, 0.902, 0.903]) and min(hashes) < 15
    assert {pair["found_by"] for pair in found} == {"hash", "features", "exact+hash", "hash+features"}
    assert ends(found[-1])[0] == ("s", "g")
    features = next(pair for pair in found if pair["found_by"] == "features")
    assert ends(features) == (("s", "d0"), ("s", "c0"))


def test_of_many_pairs_a_part_is_read_and_all_are_counted(tmp_path, monkeypatch):
    rows = [("s", f"a{i:03d}", "s", f"b{i}", "hash", 1, None, False, True) for i in range(300)]
    pq.write_table(table(*rows), tmp_path / "pairs.parquet", row_group_size=10)
    monkeypatch.setattr(duplicates, "ROWS_READ", 50)
    pairs, total = duplicates.read_pairs(tmp_path / "pairs.parquet")
    places = [int(key[1:]) for key in pairs["key_a"].to_pylist()]
    assert (len(pairs), total) == (50, 300) and places[:10] == list(range(10)) and max(places) > 230
    pq.write_table(table(*rows)[:0], tmp_path / "none.parquet")
    none, total = duplicates.read_pairs(tmp_path / "none.parquet")
    assert (len(none), total, telling(none), largest_groups(none)) == (0, 0, [], [])


def test_the_largest_groups_are_counted_by_who_stays():
    rows = [("s", "x", "t", f"copy{i}", "hash", 1, None, False, True) for i in range(3)]
    rows += [("r", f"early{i}", "s", "y", "hash", 1, None, True, False) for i in range(5)]
    rows += [("s", "z", "s", "w", "hash", 1, None, False, True), ("s", "p", "s", "q", "hash", 1, None, True, True)]
    assert largest_groups(table(*rows)) == [
        (("s", "y"), [("r", f"early{i}") for i in range(5)]),
        (("s", "x"), [("t", f"copy{i}") for i in range(3)]),
    ]


def test_a_group_shows_the_one_that_stays_and_its_copies(html, shown):
    alt, picture = next((alt, data) for alt, data in shown(html).items() if "copies dropped for one image" in alt)
    assert alt.startswith("3 copies dropped for one image. First the image that stays, 000000002")
    first = tile(picture, 0, 4)
    assert all(np.abs(first - tile(picture, place, 4)).mean() < 20 for place in range(1, 4))


def test_a_picture_is_no_larger_than_its_bound():
    noise = np.random.default_rng(1).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    images = [Image.fromarray(noise)] * (3 * COLUMNS)
    assert len(encoded(images[0])) < 20_000
    assert len(encoded(mosaic(images))) < 320_000


def test_empty_tiles_are_transparent_and_rows_fill_from_the_left():
    images = [Image.new("RGB", (50, 50), (10 * i, 0, 0)) for i in range(COLUMNS + 2)]
    whole = np.asarray(mosaic(images))
    assert whole.shape[0] > TILE and (whole[-1, -1] == 0).all()
    assert [int(whole[top, left, 0]) for left, top in (corner(i, COLUMNS) for i in range(10))] == list(
        range(0, 100, 10)
    )


def test_an_equal_key_of_another_shard_is_another_picture(curated, view):
    pictures = Pictures(view(curated))
    found = pictures.images([("00000", "000000003"), ("00009", "same"), ("00001", "000000003")])
    assert set(found) == {("00000", "000000003"), ("00009", "same")}
