"""The raw side: which shards there are, and their samples in order."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping

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


def save_shards(shards: list[Shard]) -> bytes:
    """The plan as JSON bytes: task K of a per-shard stage is entry K."""
    return json.dumps([dataclasses.asdict(shard) for shard in shards], indent=1).encode()


def parse_shards(entries: list[Mapping[str, str]]) -> list[Shard]:
    """The inverse of save_shards, from parsed JSON."""
    return [Shard(entry["name"], entry["url"], int(entry["size"])) for entry in entries]
