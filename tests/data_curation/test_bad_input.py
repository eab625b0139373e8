"""Bad input costs one sample and is named with its reason; odd formats come through converted."""

from __future__ import annotations

import struct
import tarfile
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from megavlm.data_curation.ledger import Ledger
from megavlm.platform.cli import main
from megavlm.platform.errors import InputError
from megavlm.platform.images import decode
from megavlm.platform.shards import ShardReader


def bomb(side: int = 30_000) -> bytes:
    """A PNG whose header claims side x side pixels, in a hundred bytes."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(64))), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts)
    return b"\x89PNG\r\n\x1a\n" + body


def reasons(run) -> dict[str, str]:
    rows = pq.read_table(run / "rejected.parquet").to_pylist()
    assert all(row["reason"] for row in rows)
    return {row["key"]: row["reason"] for row in rows}


@pytest.fixture
def good(tools):
    return lambda i, **options: tools.encode(tools.photo(500 + i), **options)


def test_every_bad_sample_is_named_and_the_rest_goes_on(tools, curate, good, tmp_path):
    fine = [tools.raw(f"ok{i}", good(i)) for i in range(8)]
    bad = {
        "truncated": tools.raw("b0", good(20)[: len(good(20)) // 2]),
        "empty": tools.raw("b1", b""),
        "not_an_image": tools.raw("b2", b"<html>404 not found</html>"),
        "too_large": tools.raw("b3", bomb(), ext="png"),
        "missing_caption": tools.raw("b4", good(24), caption=None),
        "invalid_json": tools.raw("b5", good(25), meta=b'{"width": '),
        "too_small": tools.raw("b6", tools.encode(tools.photo(1, 40, 40))),
        "aspect_ratio": tools.raw("b7", tools.encode(tools.photo(1, 400, 60))),
        "flat_image": tools.raw("b8", tools.encode(Image.new("RGB", (100, 100), (90, 120, 30)))),
        "missing_image": tools.Raw("b9", {"txt": b"a photo", "json": b"{}"}),
    }
    blank = tools.raw("c0", good(30), caption="  \n")
    no_object = tools.raw("c1", good(31), meta=b"[1, 2]")
    tools.write_shard(tmp_path / "raw", "00000", [*fine, *bad.values(), blank, no_object], lost=["gone"])
    told = curate(tools.recipe(tmp_path / "raw", cluster={"clusters": 2}))
    wanted = {sample.key: reason for reason, sample in bad.items()}
    wanted |= {"c0": "missing_caption", "c1": "invalid_json", "gone": "failed_to_download"}
    assert reasons(tmp_path / "run") == wanted
    assert told["funnel"][-1]["kept"] == 8


def test_damaged_tars_keep_what_comes_before_the_damage(tools, curate, good, tmp_path):
    folder = tmp_path / "raw"
    samples = [tools.raw(f"0000{i}", good(i)) for i in range(5)]
    tar = tools.write_shard(folder, "00000", samples)
    whole = tar.read_bytes()
    tar.write_bytes(whole[: whole.rindex(b"00003.jpg") + 600])  # cut inside sample 3; 4 is gone
    second = tools.write_shard(folder, "00001", [tools.raw(f"0001{i}", good(10 + i)) for i in range(5)])
    with tarfile.open(second, "a") as archive:
        tools.add_member(archive, "00014.jpg", good(42))  # while its sample is still open: it comes before it in a scan
        tools.add_member(archive, "../outside.jpg", good(40))
        tools.add_member(archive, "00010.jpg", good(41))
        tools.add_member(archive, "00010.txt", b"another caption")
    curate(tools.recipe(folder, cluster={"clusters": 1}))
    found = pq.read_table(tmp_path / "run" / "rejected.parquet").to_pylist()
    assert {(row["key"], row["reason"]) for row in found} == {
        ("00003", "truncated_tar"),
        ("00004", "missing_in_tar"),
        ("../outside.jpg", "unsafe_name"),
        ("00010", "duplicate_key"),
        ("00014", "duplicate_key"),
    }
    reader = ShardReader(tmp_path / "run" / "export")
    assert sorted(reader.keys()) == ["00000", "00001", "00002", "00010", "00011", "00012", "00013", "00014"]
    assert reader.read("00010").fields["jpg"] == good(10), "the first of a duplicated key is kept"
    assert not list(tmp_path.rglob("outside*"))


def test_odd_formats_are_kept_and_convert_right(tools, curate, tmp_path):
    photo = tools.photo
    sixteen = np.asarray(photo(61).convert("L"), dtype=np.uint16) * 257
    turned, exif = photo(63), Image.Exif()
    exif[0x0112] = 6
    frames = [photo(64).quantize(64), photo(65).quantize(64)]
    odd = {
        "cmyk": ("jpg", tools.encode(photo(60).convert("CMYK"))),
        "deep": ("png", tools.encode(Image.fromarray(sixteen), "PNG")),
        "palette": ("png", tools.encode(photo(62).quantize(64), "PNG")),
        "turned": ("jpg", tools.encode(turned.rotate(90, expand=True), exif=exif)),
        "moving": ("gif", tools.encode(frames[0], "GIF", save_all=True, append_images=frames[1:])),
    }
    tools.write_shard(tmp_path / "raw", "00000", [tools.raw(key, data, ext=ext) for key, (ext, data) in odd.items()])
    curate(tools.recipe(tmp_path / "raw", cluster={"clusters": 1}))
    rows = {row["key"]: row for row in pq.read_table(tmp_path / "run" / "filter" / "00000.parquet").to_pylist()}
    assert all(row["keep"] for row in rows.values())
    assert (rows["turned"]["width"], rows["turned"]["height"]) == turned.size, "as displayed, not as stored"
    reader = ShardReader(tmp_path / "run" / "export")
    assert {key: next(iter(reader.read(key).fields)) for key in odd} == {key: ext for key, (ext, _) in odd.items()}
    assert np.array_equal(decode(reader.read("deep").fields["png"])[..., 0], sixteen // 257)


def test_a_shard_without_parquet_or_stats_is_noted_and_used(tools, curate, good, tmp_path):
    folder = tmp_path / "raw"
    tools.write_shard(folder, "00000", [tools.raw(f"k{i}", good(i)) for i in range(3)])
    (folder / "00000.parquet").write_bytes(b"no parquet")
    (folder / "00000_stats.json").unlink()
    told = curate(tools.recipe(folder, cluster={"clusters": 1}))
    entry = Ledger(tmp_path / "run" / "ledger").state("ingest")[0].entry()
    assert entry["notes"].keys() == {"parquet", "stats"}
    assert told["funnel"][-1]["kept"] == 3


def test_two_shards_that_share_a_key_export_both(tools, curate, good, tmp_path):
    for name, i in (("a", 1), ("b", 2)):
        tools.write_shard(tmp_path / "raw", name, [tools.raw("same", good(i))])
    curate(tools.recipe(tmp_path / "raw", cluster={"clusters": 1}))
    reader = ShardReader(tmp_path / "run" / "export")
    assert sorted(reader.keys()) == ["a-same", "b-same"]
    assert reader.read("b-same").json()["source"]["key"] == "same"


def test_no_shards_and_nothing_left_are_clear_errors(tools, curate, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no .tar shards" in curate(tools.recipe(tmp_path / "empty"), code=2)["error"]["what"]
    tools.write_shard(tmp_path / "raw", "00000", [tools.raw("k", b"")])
    assert "no image is left" in curate(tools.recipe(tmp_path / "raw"), out="other", code=1)["error"]["what"]


def test_missing_demo_data_is_said_with_the_command_that_makes_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MEGAVLM_DEMO_DATA", str(tmp_path / "none"))
    assert main(["curate", "run", "curate-demo", "--out", str(tmp_path / "run")]) == InputError.exit_code
    said = capsys.readouterr().err
    assert str(tmp_path / "none" / "raw") in said and "`megavlm demo --only data`" in said


def test_the_demo_mark_means_the_demos_folder(tools, tmp_path, monkeypatch, curate):
    tools.small_crawl(tmp_path / "data" / "raw", shards=1)
    monkeypatch.setenv("MEGAVLM_DEMO_DATA", str(tmp_path / "data"))
    tree = tools.recipe("{demo}/raw")
    tree["curation"]["stages"] = {"ingest": {}}
    assert curate(tree)["funnel"][0]["kept"] == 12
