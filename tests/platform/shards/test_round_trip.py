"""What is written is read back: by our reader, by our scan, and by WebDataset itself."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.shards import Sample, ShardReader, ShardWriter, scan_tar
from megavlm.platform.storage import list_files, read_range

# A folder per example is made inside the test, so the function's tmp_path may be shared.
SHARED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

THREE = {f"{number:03d}": {"jpg": bytes([number]) * 700, "txt": f"caption {number}"} for number in range(3)}


def write(folder: Path | str, samples: dict, **options: object) -> list[str]:
    with ShardWriter(folder, **options) as writer:
        for key, fields in samples.items():
            writer.write(key, fields)
    return writer.shards


@SHARED
@given(data=st.data(), per_shard=st.integers(1, 4))
def test_round_trip(tmp_path, samples_strategy, data, per_shard):
    samples = data.draw(samples_strategy)
    folder = tmp_path / os.urandom(8).hex()
    tars = write(folder, samples, samples_per_shard=per_shard)
    expected = [Sample(key, fields) for key, fields in samples.items()]
    reader = ShardReader(folder)
    assert list(reader.keys()) == list(samples) and len(reader) == len(samples) and not reader.bad
    assert [reader.read(number) for number in range(len(reader))] == expected
    assert [reader.read(key) for key in samples] == expected
    assert [item for tar in tars for item in scan_tar(tar)] == expected


@SHARED
@given(data=st.data())
def test_a_missing_index_is_rebuilt_the_same(tmp_path, samples_strategy, data):
    folder = tmp_path / os.urandom(8).hex()
    [tar] = write(folder, data.draw(samples_strategy))
    first = ShardReader(tar)
    Path(tar.replace(".tar", ".index.parquet")).unlink()
    second = ShardReader(tar)
    assert list(second.keys()) == list(first.keys())
    assert [second.read(n) for n in range(len(second))] == [first.read(n) for n in range(len(first))]


def test_webdataset_reads_it(tmp_path):
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    [tar] = write(tmp_path, {"a/001": {"jpg": b"1", "seg.png": b"2"}, "a/002": {"jpg": b"3"}})
    with open(tar, "rb") as stream:
        groups = list(group_by_keys({**member, "__url__": tar} for member in tar_file_iterator(stream)))
    assert [(group["__key__"], group["jpg"]) for group in groups] == [("a/001", b"1"), ("a/002", b"3")]
    assert groups[0]["seg.png"] == b"2"


def test_fields_are_encoded(tmp_path):
    value = {"messages": [{"role": "user", "content": "<image> où?"}], "id": 7}
    write(tmp_path, {"a": {"json": value, "txt": "où", "jpg": b"\xff"}})
    sample = ShardReader(tmp_path).read("a")
    assert sample.json() == value and sample.text() == "où"
    assert sample.fields["txt"] == "où".encode() and json.loads(sample.fields["json"]) == value


def test_the_index_says_where_the_bytes_are(tmp_path):
    [tar] = write(tmp_path, {**THREE, "long" * 40: {"txt": "beyond a plain header"}})
    rows = pq.read_table(tar.replace(".tar", ".index.parquet")).to_pylist()
    with tarfile.open(tar) as archive:
        members = archive.getmembers()
    assert [f"{row['key']}.{row['ext']}" for row in rows] == [member.name for member in members]
    assert [(row["offset"], row["size"]) for row in rows] == [(m.offset_data, m.size) for m in members]
    assert read_range(tar, rows[2]["offset"], rows[2]["size"]) == b"\x01" * 700


def test_shards_are_split_named_and_equal_byte_for_byte(tmp_path):
    tars = [write(tmp_path / name, THREE, prefix="t-", samples_per_shard=2) for name in ("one", "two")]
    assert [os.path.basename(tar) for tar in tars[0]] == ["t-00000.tar", "t-00001.tar"]
    digests = [
        [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in list_files(tmp_path / n)]
        for n in ("one", "two")
    ]
    assert len(digests[0]) == 4 and digests[0] == digests[1]


def test_a_failed_block_leaves_whole_shards_only(tmp_path):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, samples_per_shard=2) as writer:
        for key, fields in THREE.items():
            writer.write(key, fields)
        raise RuntimeError
    assert sorted(os.listdir(tmp_path)) == ["00000.index.parquet", "00000.tar"]
    assert len(ShardReader(tmp_path)) == 2


def test_an_index_of_another_tar_is_not_believed(tmp_path):
    write(tmp_path / "one", THREE)
    write(tmp_path / "two", dict(list(THREE.items())[:1]))
    os.replace(tmp_path / "two" / "00000.index.parquet", tmp_path / "one" / "00000.index.parquet")
    assert list(ShardReader(tmp_path / "one").keys()) == list(THREE)
    (tmp_path / "one" / "00000.index.parquet").write_bytes(b"PAR1 not really")
    assert list(ShardReader(tmp_path / "one").keys()) == list(THREE)


@pytest.mark.parametrize(
    "key", ["", "a.b", "../a", "/a", "a/", "./a", "a//b", "a\0b", "\ud800", "c:/a", "a\\..\\..\\b"]
)
def test_keys_that_would_not_read_back(tmp_path, key):
    with ShardWriter(tmp_path) as writer, pytest.raises(InputError):
        writer.write(key, {"txt": "x"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "fields", [{}, {"": b""}, {"JPG": b""}, {"a/b": b""}, {"json": {1, 2}}, {"json": float("nan")}]
)
def test_fields_that_cannot_be_stored(tmp_path, fields):
    with ShardWriter(tmp_path) as writer, pytest.raises(InputError):
        writer.write("a", fields)


def test_a_key_is_written_once(tmp_path):
    with ShardWriter(tmp_path, samples_per_shard=1) as writer:
        writer.write("a", {"txt": "first"})
        with pytest.raises(InputError, match="before"):
            writer.write("a", {"txt": "second"})


def test_bad_lookups(tmp_path):
    write(tmp_path / "s", THREE)
    reader = ShardReader(tmp_path / "s")
    for wrong in (3, -1):
        with pytest.raises(IndexError):
            reader.read(wrong)
    with pytest.raises(KeyError):
        reader.read("nowhere")
    (tmp_path / "empty").mkdir()
    for missing in ("empty", "absent", "absent.tar"):
        with pytest.raises(InputError):
            ShardReader(tmp_path / missing)
    with pytest.raises(ConfigError):
        ShardWriter(tmp_path, samples_per_shard=0)


def test_field_sizes_come_from_the_index(tmp_path):
    write(tmp_path, THREE)
    assert ShardReader(tmp_path).fields("001") == {"jpg": 700, "txt": 9}


def test_in_memory_storage():
    folder = "memory://shards-test"
    write(folder, THREE, samples_per_shard=2)
    reader = ShardReader(folder)
    assert list(reader.keys()) == list(THREE)
    assert reader.read("002").fields == {"jpg": b"\x02" * 700, "txt": b"caption 2"}
    assert [item.key for item in scan_tar(f"{folder}/00000.tar")] == ["000", "001"]
