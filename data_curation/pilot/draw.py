"""Which shards a pilot reads, and how many samples a source holds, without reading it all."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from megavlm.platform.errors import InputError
from megavlm.platform.shards import Sample
from megavlm.platform.storage import open_file

from ..source import RUN_MARK, Shard
from ..sources.parquet_rows import open_parquet

FOOTERS = 2000  # files whose row counts are looked up at most; of more, some at even distances


@dataclasses.dataclass(frozen=True)
class Census:
    """What is known of a source: its shards, how many samples, and how that is known ("counted", "by bytes")."""

    shards: Sequence[Shard]
    samples: int
    label: str

    @property
    def per_shard(self) -> float:
        """Samples of the mean shard."""
        return self.samples / len(self.shards)


def census(shards: Sequence[Shard], folder: Path) -> Census:
    """Parquet files say in their footers how many rows they have; of other shards the middle one is read.

    `folder` stands for the run in the URLs of shards that a run writes. Raises InputError when nothing is in them.
    """
    tables = all(shard.url.endswith(".parquet") for shard in shards)
    if tables:
        looked = [shards[place] for place in evenly(len(shards), FOOTERS)]
        samples = sum(_rows(shard, folder) for shard in looked)
    else:
        looked = [shards[len(shards) // 2]]
        samples = sum(isinstance(item, Sample) for item in looked[0].source.read(looked[0], images=False))
    if not samples:
        raise InputError("no sample in the shards that were looked at", where=looked[0].url)
    if tables and len(looked) == len(shards):
        return Census(shards, samples, "counted")
    return Census(shards, by_bytes(shards, looked, samples), "by bytes")


def recounted(found: Census, shards: Sequence[Shard], samples: int) -> Census:
    """With the samples that the drawn shards turned out to hold, where the source's were not counted."""
    if found.label == "counted":
        return found
    if len(shards) == len(found.shards):
        return Census(shards, samples, "counted")
    return Census(found.shards, by_bytes(found.shards, shards, samples), found.label)


def by_bytes(shards: Sequence[Shard], known: Sequence[Shard], samples: int) -> int:
    """How many samples all shards hold when `known` ones, at least one of them not empty, hold `samples`."""
    return round(samples * sum(shard.size for shard in shards) / max(1, sum(shard.size for shard in known)))


def _rows(shard: Shard, folder: Path) -> int:
    url = shard.url.replace(RUN_MARK, str(folder), 1) if shard.url.startswith(RUN_MARK) else shard.url
    try:
        with open_file(url) as file:
            return int(open_parquet(file, url).metadata.num_rows)
    except InputError:  # a broken file gives nothing, in the run as well
        return 0


def drawn(found: Census, samples: int) -> list[Shard]:
    """Whole shards at even distances, with about `samples` samples; at least one."""
    return [found.shards[place] for place in evenly(len(found.shards), max(1, round(samples / found.per_shard)))]


def evenly(count: int, wanted: int) -> list[int]:
    """`wanted` of `count` places (all when there are no more), rising, each in the middle of its share of the list."""
    wanted = min(count, wanted)
    return [(2 * place + 1) * count // (2 * wanted) for place in range(wanted)]
