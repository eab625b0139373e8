"""A reader of many shards: what it holds, what it reads and when, and what it says of shards that changed."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from megavlm.platform.errors import InputError
from megavlm.platform.shards import ShardReader, ShardWriter, reader


def write(folder: Path, samples: int, per_shard: int = 3) -> Path:
    with ShardWriter(folder, samples_per_shard=per_shard) as writer:
        for k in range(samples):
            writer.write(f"k{k:03d}", {"txt": f"text {k}", "json": {"number": k}})
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tars whose indexes were read whole."""
    seen: list[str] = []
    index = reader._index
    monkeypatch.setattr(reader, "_index", lambda tar: seen.append(Path(tar).name) or index(tar))
    return seen


def test_indexes_are_read_when_they_are_used_and_few_are_kept(tmp_path, opened):
    shards = ShardReader(write(tmp_path / "s", 20), held=2)
    assert len(shards) == 20 and shards.starts.tolist() == [0, 3, 6, 9, 12, 15, 18, 20] and opened == []
    assert [shards.read(k).text() for k in (0, 2, 19, 1)] == ["text 0", "text 2", "text 19", "text 1"]
    assert opened == ["00000.tar", "00006.tar"]
    assert shards.key(4) == "k004" and shards.fields(5) == {"txt": 6, "json": 13}
    assert opened[2:] == ["00001.tar"]
    assert shards.key(18) == "k018" and opened[3:] == ["00006.tar"]  # the one used longest ago had gone
    assert list(shards.keys()) == [f"k{k:03d}" for k in range(20)] and shards.find("k013") == 13
    assert len(shards._held._shards) == 2


def test_a_copy_in_another_process_reads_the_same(tmp_path):
    shards = ShardReader(write(tmp_path / "s", 5))
    shards.read(0)
    copy = pickle.loads(pickle.dumps(shards))
    assert copy.read(4) == shards.read(4) and copy.digest == shards.digest


def test_a_reader_of_known_shards_reads_nothing_before_it_is_used(tmp_path, opened):
    first = ShardReader(write(tmp_path / "s", 10))
    again = ShardReader(tmp_path / "s", first.shards)
    assert len(again) == 10 and again.digest == first.digest and opened == []
    nowhere = ShardReader(tmp_path / "moved", first.shards)
    assert len(nowhere) == 10
    with pytest.raises(InputError, match="no such file"):
        nowhere.read(0)
    assert again.read(9) == first.read(9)


def test_a_shard_that_changed_is_noticed_when_it_is_used(tmp_path):
    known = ShardReader(write(tmp_path / "s", 6)).shards
    with ShardWriter(tmp_path / "s", prefix="", samples_per_shard=3) as writer:
        writer.write("other", {"txt": "text 0"})
    again = ShardReader(tmp_path / "s", known)
    with pytest.raises(InputError, match="this shard has changed"):
        again.read(1)
    assert again.read(3).text() == "text 3"


@pytest.mark.parametrize("without", ["index", "summary"])
def test_a_set_is_the_same_whatever_its_indexes_say(tmp_path, without):
    first = ShardReader(write(tmp_path / "s", 7))
    for index in (tmp_path / "s").glob("*.index.parquet"):
        if without == "index":
            index.unlink()
        else:  # one of before there were summaries
            table = pq.read_table(index)
            kept = {key: value for key, value in table.schema.metadata.items() if key == b"tar_fingerprint"}
            pq.write_table(table.replace_schema_metadata(kept), index)
    again = ShardReader(tmp_path / "s")
    assert again.shards.equals(first.shards) and again.digest == first.digest
    assert [again.read(k) for k in range(7)] == [first.read(k) for k in range(7)]


def test_the_digest_tells_sets_apart(tmp_path):
    digests = {ShardReader(write(tmp_path / f"{k}", k)).digest for k in (5, 6, 7)}
    order = ShardReader(write(tmp_path / "order", 5))
    with ShardWriter(tmp_path / "turned", samples_per_shard=3) as writer:
        for k in reversed(range(5)):
            sample = order.read(k)
            writer.write(sample.key, sample.fields)
    digests.add(ShardReader(tmp_path / "turned").digest)
    assert len(digests) == 4 and order.digest in digests
