"""The raw side: which shards there are, and their samples in order."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megavlm.platform.errors import InputError
from megavlm.platform.shards import Sample

if TYPE_CHECKING:
    from .sources.base import Source

# The order is the preference where a sample holds several.
IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")


# In a shard's URL: the folder of the run that holds it, wherever that folder is moved.
RUN_MARK = "{run}"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One raw shard: `name` without extension, its URL, its size in bytes (a changed one tells), and who reads it."""

    name: str
    url: str
    size: int
    source: Source = dataclasses.field(compare=False, repr=False)


def image_field(fields: Collection[str]) -> str | None:
    """The field of a sample that holds its image; None when there is none."""
    return next((name for name in IMAGE_FIELDS if name in fields), None)


def read_samples(shard: Shard, keys: Collection[str]) -> Iterator[Sample]:
    """The named samples in the shard's order, first occurrence of a key only, one in memory at a time."""
    wanted = set(keys)
    for item in shard.source.read(shard, keys=frozenset(wanted)):
        if isinstance(item, Sample) and item.key in wanted:
            wanted.discard(item.key)
            yield item


def image_bytes(sample: Sample) -> bytes:
    """The undecoded image of a sample that ingest has kept."""
    field = image_field(sample.fields)
    if field is None:
        raise InputError(f"sample '{sample.key}' holds no image", fix="the raw shard changed during the run; run again")
    return sample.fields[field]


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The list of a run's raw shards in columns, which are read quickly: task K of a per-shard stage is entry K.

    `prints` tell a changed shard, `digest` a changed list.
    """

    names: Sequence[str]
    urls: Sequence[str]
    sizes: Sequence[int]  # bytes
    prints: Sequence[str]
    digest: str

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> Plan:
        """The plan of these shards."""
        prints = [_short_hash(json.dumps([shard.name, shard.url, shard.size])) for shard in shards]
        names, urls = [shard.name for shard in shards], [shard.url for shard in shards]
        return cls(names, urls, [shard.size for shard in shards], prints, _short_hash("".join(prints)))

    def save(self) -> bytes:
        """As JSON."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def parse(cls, data: bytes, where: str) -> Plan:
        """The inverse of `save`; raises InputError for the list of an earlier version of MegaVLM."""
        fields = json.loads(data)
        if not isinstance(fields, dict):
            fix = "`megavlm curate run` writes it anew and does every task again"
            raise InputError("this list of shards was written by an earlier version", where=where, fix=fix)
        return cls(**fields)

    def shards(self, source: Source, folder: Path) -> list[Shard]:
        """The shards of a source, in the order of their tasks, for the run in `folder`."""
        urls = [str(folder) + url.removeprefix(RUN_MARK) if url.startswith(RUN_MARK) else url for url in self.urls]
        return [Shard(*row, source) for row in zip(self.names, urls, self.sizes, strict=True)]
