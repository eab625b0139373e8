"""Several folders of tars as one source: keys stay apart, and half an export is refused."""

from __future__ import annotations

import pytest

from megavlm.data_curation.sources.parse import parse_source
from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.shards import BadMember, Sample, ShardWriter


def fill(folder, keys, **fields):
    with ShardWriter(folder) as writer:
        for key in keys:
            writer.write(key, {"jpg": f"{folder.name} {key}".encode(), "json": {"of": folder.name}, **fields})


def samples(source, tmp_path):
    shards = source.find(tmp_path / "members")
    return shards, [item for shard in shards for item in source.read(shard)]


def test_parts_keep_equal_keys_apart(tmp_path):
    for folder, keys in (("one", ["a", "b"]), ("two", ["a"]), ("one-more", ["b"])):
        fill(tmp_path / folder, keys)
    parts = {"x": "one", "x-y": "two", "z": "one-more"}
    source = parse_source({"kind": "tars", "path": str(tmp_path), "parts": parts}, "source")
    shards, found = samples(source, tmp_path)
    assert [shard.name for shard in shards] == ["x--00000", "x-y--00000", "z--00000"]
    assert {item.key: item.fields["jpg"].decode() for item in found} == {
        "x/a": "one a", "x/b": "one b", "x-y/a": "two a", "z/b": "one-more b"
    }  # fmt: skip


def test_one_folder_has_its_own_keys_and_metadata_may_be_left_out(tmp_path):
    fill(tmp_path / "sa", ["sa_1"], txt="a dog")
    whole, bare = (parse_source({"kind": "tars", "path": str(tmp_path / "sa")} | more, "source")
                   for more in ({}, {"metadata": False}))  # fmt: skip
    assert samples(whole, tmp_path)[1] == [
        Sample("sa_1", {"jpg": b"sa sa_1", "json": b'{"of": "sa"}', "txt": b"a dog"})
    ]
    assert samples(bare, tmp_path)[1] == [Sample("sa_1", {"jpg": b"sa sa_1", "txt": b"a dog"})]


def test_what_is_wrong_in_a_part_is_told_under_its_name(tmp_path):
    fill(tmp_path / "cut", ["a", "b"])
    tar = tmp_path / "cut" / "00000.tar"
    tar.write_bytes(tar.read_bytes()[:2000])
    source = parse_source({"kind": "tars", "path": str(tmp_path), "parts": {"x": "cut"}}, "source")
    bad = [item for item in samples(source, tmp_path)[1] if isinstance(item, BadMember)]
    assert bad and {item.key for item in bad} <= {"", "x/a", "x/b"} and bad[-1].reason == "truncated_tar"


def test_the_export_of_an_unfinished_run_is_refused(tmp_path):
    fill(tmp_path / "run" / "export", ["a"])
    (tmp_path / "run" / "ledger").mkdir()
    source = parse_source({"kind": "tars", "path": str(tmp_path), "parts": {"x": "run/export"}}, "source")
    with pytest.raises(InputError, match="not finished"):
        source.find(tmp_path / "members")
    (tmp_path / "run" / "finished").touch()
    assert len(source.find(tmp_path / "members")) == 1


@pytest.mark.parametrize("parts", [{"a/b": "one"}, {"a--b": "one"}, {"": "one"}, {".": "one"}])
def test_a_part_is_named_so_that_its_keys_read_back(parts):
    with pytest.raises(ConfigError, match=r"parts|pattern"):
        parse_source({"kind": "tars", "path": "x", "parts": parts}, "source")


@pytest.mark.parametrize(("parts", "says"), [({"x": "nowhere"}, "no .tar shards"), ({"x": "../out"}, "leads out")])
def test_a_folder_that_is_not_there_or_not_below_is_named(tmp_path, parts, says):
    with pytest.raises(InputError, match=says):
        parse_source({"kind": "tars", "path": str(tmp_path), "parts": parts}, "source").find(tmp_path)
