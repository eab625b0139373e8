"""Hugging Face datasets as they lie on a disk or in a bucket: Parquet files with the images inside."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from megavlm.platform.errors import InputError
from megavlm.platform.shards import BadMember, Sample
from megavlm.platform.storage import open_file

from ..source import Shard
from .base import Source
from .captions_file import CAPTION_COLUMNS
from .keys import usable_key
from .parquet_rows import Lost, batches, open_parquet, parquet_shards, rows

Row = dict[str, Any]
# Where an image's first bytes say what it is; the decoder has the last word.
SIGNS = (
    (b"\xff\xd8", "jpg"),
    (b"\x89PNG", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
)


class HuggingFace(Source):
    """Every .parquet file is a shard; an image is a struct {bytes, path}, as `datasets` writes it, or plain bytes.

    A sample's key is its shard's name and row, unless `key` names a column. All other columns are its metadata.
    """

    kind: str = "hf"
    image: str | None = None  # by default the first column of that shape
    caption: str | None = None  # by default `text`, `caption` or `txt`
    key: str | None = None

    def find(self, members: Path) -> list[Shard]:
        """By name."""
        return parquet_shards(self)

    def read(
        self, shard: Shard, keys: Collection[str] | None = None, images: bool = True
    ) -> Iterator[Sample | BadMember]:
        """Row by row; a damaged place costs the rest of its row group, and is said to."""
        with open_file(shard.url) as file:
            try:
                parquet = open_parquet(file, shard.url)
            except InputError as error:
                yield BadMember(f"{shard.url.rsplit('/', 1)[-1]}: {error.what}", "corrupt_parquet")
                return
            image = self._image_column(parquet.schema_arrow, shard)
            seen: set[str] = set()
            for piece in batches(parquet, None):
                if isinstance(piece, Lost):
                    own = f"{usable_key(shard.name)}-{piece.first:06d}"
                    yield BadMember(f"{shard.url.rsplit('/', 1)[-1]}: {piece}", "corrupt_parquet", own)
                    continue
                for number, row in enumerate(rows(piece[1]), start=piece[0]):
                    yield from self._item(shard, number, row, image, seen, keys)

    def _item(
        self, shard: Shard, number: int, row: Row | None, image: str, seen: set[str], keys: Collection[str] | None
    ) -> Iterator[Sample | BadMember]:
        own = f"{usable_key(shard.name)}-{number:06d}"
        if row is None:
            yield BadMember(f"row {number} of {shard.name}", "unreadable_row", own)
            return
        key = own if self.key is None or row.get(self.key) is None else usable_key(str(row[self.key]))
        if key in seen:
            yield BadMember(f"row {number} of {shard.name}", "duplicate_key", key)
        elif keys is None or key in keys:
            yield Sample(key, dict(self._fields(row, image)))
        seen.add(key)

    def _fields(self, row: Row, image: str) -> Iterator[tuple[str, bytes]]:
        data = row.pop(image, None)
        data = data.get("bytes") if isinstance(data, dict) else data
        if isinstance(data, bytes):
            yield image_kind(data), data
        names = CAPTION_COLUMNS if self.caption is None else (self.caption,)
        caption = next((row[name] for name in names if isinstance(row.get(name), str)), None)
        if caption is not None:
            yield "txt", caption.encode("utf-8", "replace")
        yield "json", json.dumps(row, sort_keys=True, default=_plain).encode()

    def _image_column(self, schema: pa.Schema, shard: Shard) -> str:
        """Raises InputError, naming the file, when there is none."""
        found = [field.name for field in schema if _holds_image(field.type)]
        wanted = found[:1] if self.image is None else [name for name in schema.names if name == self.image]
        if not wanted:
            fix = f"curation.source.image=COLUMN; there are: {', '.join(schema.names)}"
            raise InputError("no column holds images", where=shard.url, fix=fix)
        return str(wanted[0])


def _holds_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(place).name == "bytes" for place in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def image_kind(data: bytes) -> str:
    """The field for an image by its first bytes, "jpg" where they tell nothing."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return "avif"
    return next((kind for sign, kind in SIGNS if data.startswith(sign)), "jpg")


def _plain(value: object) -> str:
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)
