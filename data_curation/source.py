"""The raw side: which shards there are, and their samples in order."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Sequence

from megavlm.platform.demo.places import MARK, expand
from megavlm.platform.errors import InputError
from megavlm.platform.shards import Sample, scan_tar
from megavlm.platform.storage import exists, file_size, list_files

# The order is the preference where a sample holds several.
IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")


@dataclasses.dataclass(frozen=True)
class Shard:
    """One raw shard: `name` without extension, the tar's URL, and its size in bytes (which tells a changed shard)."""

    name: str
    url: str
    size: int


def find_shards(path: str) -> list[Shard]:
    """Every {name}.tar under a folder or URL, by name; raises InputError when there is none.

    `{demo}` in the path stands for the folder of the demo's data.
    """
    place = expand(path)
    urls = sorted(list_files(place, suffix=".tar")) if exists(place) else []
    if not urls:
        own = "curation.source.path=FOLDER, one that img2dataset wrote with output_format=webdataset"
        fix = f"make the demo's data with `megavlm demo --only data`, or set {own}" if MARK in path else own
        raise InputError(f"no .tar shards in '{place}'", where="curation.source.path", fix=fix)
    return [Shard(url.rsplit("/", 1)[-1].removesuffix(".tar"), url, file_size(url)) for url in urls]


def image_field(fields: Collection[str]) -> str | None:
    """The field of a sample that holds its image; None when there is none."""
    return next((name for name in IMAGE_FIELDS if name in fields), None)


def read_samples(shard: Shard, keys: Collection[str]) -> Iterator[Sample]:
    """The named samples in the order of the tar, first occurrence of a key only, one in memory at a time."""
    wanted = set(keys)
    for item in scan_tar(shard.url):
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

    def shards(self) -> list[Shard]:
        """The shards, in the order of their tasks."""
        return [Shard(*row) for row in zip(self.names, self.urls, self.sizes, strict=True)]
