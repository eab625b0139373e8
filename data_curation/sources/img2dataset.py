"""What img2dataset wrote with output_format=webdataset: {shard}.tar, {shard}.parquet, {shard}_stats.json."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from megavlm.platform.errors import InputError, StorageFault
from megavlm.platform.shards import BadMember, Sample, scan_tar
from megavlm.platform.storage import exists, file_size, list_files, open_file

from ..source import Shard
from .base import Notes, Row, Source

# What readers of Parquet and JSON raise on files that anyone may have damaged.
DAMAGED = (InputError, OSError, pa.ArrowException, ValueError, KeyError, TypeError, RecursionError, MemoryError)


class Img2Dataset(Source):
    """The tar holds the downloads that succeeded, the Parquet file all rows with their status."""

    kind: str = "img2dataset"

    def find(self, members: Path) -> list[Shard]:
        """Every {name}.tar of the folder, by name."""
        urls = sorted(list_files(self.place, suffix=".tar")) if exists(self.place) else []
        if not urls:
            own = "curation.source.path=FOLDER, one that img2dataset wrote with output_format=webdataset"
            raise self.nothing(f"no .tar shards in '{self.place}'", own)
        return [Shard(url.rsplit("/", 1)[-1].removesuffix(".tar"), url, file_size(url), self) for url in urls]

    def read(
        self, shard: Shard, keys: Collection[str] | None = None, images: bool = True
    ) -> Iterator[Sample | BadMember]:
        """One pass over the tar."""
        yield from scan_tar(shard.url)

    def listed(self, shard: Shard) -> tuple[dict[str, Row], Notes]:
        """The Parquet file's rows; a missing or unreadable file costs a note, not the shard."""
        from megavlm.platform.tables import read_parquet

        try:
            rows = read_parquet(_whole(parquet_url(shard))).to_pylist()
            return {str(row["key"]): row for row in rows}, {}
        except DAMAGED as error:
            return {}, {"parquet": f"{type(error).__name__}: {error}"}

    def describe(self, bad: BadMember, shard: Shard) -> str:
        """The member and its tar."""
        return f"member '{bad.name}' of {shard.name}.tar"

    def notes(self, shard: Shard, usable: int) -> Notes:
        """A note when _stats.json is missing, or counts other successes than there are usable samples."""
        try:
            claimed: Any = json.loads(_whole(shard.url.removesuffix(".tar") + "_stats.json"))["successes"]
        except DAMAGED as error:
            return {"stats": f"{type(error).__name__}: {error}"}
        return {} if claimed == usable else {"stats": f"_stats.json counts {claimed} successes, {usable} are usable"}


def _whole(url: str) -> bytes:
    """A file's bytes; raises StorageFault for what is no fault of the file."""
    with open_file(url) as file:
        try:
            return file.read()
        except OSError as error:
            raise StorageFault(f"could not be read: {error}", where=url, fix="give the same command again") from error


def parquet_url(shard: Shard) -> str:
    """Where the rows of a tar stand."""
    return shard.url.removesuffix(".tar") + ".parquet"
