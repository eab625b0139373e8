"""What is written is hashed on the way, and samples are taken out of a shard as if they had never been in it."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import pytest

from megavlm.platform.shards import ShardReader, ShardWriter, rewrite_without

FIVE = {f"s/{number}": {"jpg": bytes([number]) * (700 * number + 1), "txt": f"n {number}"} for number in range(5)}


def write(folder: Path, samples: dict, per_shard: int = 10) -> ShardWriter:
    with ShardWriter(folder, samples_per_shard=per_shard) as writer:
        for key, fields in samples.items():
            writer.write(key, fields)
    return writer


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_writer_knows_hashes_sizes_and_samples_of_what_it_wrote(tmp_path):
    written = write(tmp_path, FIVE, per_shard=2).written
    assert [shard.samples for shard in written] == [2, 2, 1]
    for shard in written:
        tar = Path(shard.url)
        assert (shard.sha256, shard.bytes) == (digest(tar), tar.stat().st_size)
        assert shard.index_sha256 == digest(tar.with_suffix(".index.parquet"))


@pytest.mark.parametrize("out", [{"s/0"}, {"s/4"}, {"s/1", "s/3"}, set(), {"nobody"}])
def test_without_samples_a_shard_is_the_one_that_never_had_them(tmp_path, out):
    write(tmp_path / "all", FIVE)
    never = write(tmp_path / "never", {key: fields for key, fields in FIVE.items() if key not in out}).written[0]
    found = rewrite_without(tmp_path / "all" / "00000.tar", out)
    assert found is not None and found.sha256 == never.sha256 == digest(tmp_path / "all" / "00000.tar")
    assert found.index_sha256 == never.index_sha256 == digest(tmp_path / "all" / "00000.index.parquet")
    with tarfile.open(tmp_path / "all" / "00000.tar") as tar:
        assert not {name.rsplit(".", 1)[0] for name in tar.getnames()} & out
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["00000.index.parquet", "00000.tar"]


def test_a_shard_of_which_nothing_is_left_goes_and_may_be_gone_already(tmp_path):
    write(tmp_path, FIVE)
    for _ in range(2):
        assert rewrite_without(tmp_path / "00000.tar", set(FIVE)) is None
        assert list(tmp_path.iterdir()) == []


def test_an_index_of_another_tar_misleads_no_rewriting(tmp_path):
    """What a removal that was killed between tar and index leaves."""
    write(tmp_path, FIVE)
    stale = (tmp_path / "00000.index.parquet").read_bytes()
    rewrite_without(tmp_path / "00000.tar", {"s/0"})
    (tmp_path / "00000.index.parquet").write_bytes(stale)
    rewrite_without(tmp_path / "00000.tar", {"s/0", "s/1"})
    reader = ShardReader(tmp_path)
    assert [reader.read(n).fields["jpg"] for n in range(len(reader))] == [FIVE[f"s/{n}"]["jpg"] for n in (2, 3, 4)]
