"""Rows of Parquet files that anyone may have written, cut off or tampered with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from megavlm.platform.errors import InputError
from megavlm.platform.storage import file_size

from ..source import Shard
from .base import Source
from .tree import find_files

# Small: with images in the rows, a batch is what lies in memory.
BATCH = 32


def parquet_shards(source: Source) -> list[Shard]:
    """Every .parquet below the source's path (or that file itself), each a shard named by its place."""
    if source.place.endswith(".parquet"):
        return [Shard(_name(source.place.rsplit("/", 1)[-1]), source.place, file_size(source.place), source)]
    found = [file for file in find_files(source.place) if file.name.endswith(".parquet") and file.inside]
    if not found:
        raise source.nothing(
            f"no .parquet files in '{source.place}'", "curation.source.path=FOLDER with .parquet files"
        )
    return [Shard(_name(file.name), file.url, file.size, source) for file in found]


def _name(path: str) -> str:
    return path.removesuffix(".parquet").replace("/", "--")


def open_parquet(file: IO[bytes], where: str) -> pq.ParquetFile:
    """The open file, its footer read; raises InputError."""
    try:
        return pq.ParquetFile(file, page_checksum_verification=True)
    except Exception as error:  # pyarrow raises a dozen types on hostile bytes
        raise InputError(f"no readable Parquet file: {error}", where=where, fix="fetch or write it again") from error


@dataclasses.dataclass(frozen=True)
class Lost:
    """The rest of a row group that cannot be read: `rows` of them from row `first` of the file on."""

    first: int
    rows: int
    error: Exception

    def __str__(self) -> str:
        return f"{self.rows} rows from row {self.first} on lost, {type(self.error).__name__}: {self.error}"


def batches(
    file: pq.ParquetFile, columns: Sequence[str] | None, size: int = BATCH
) -> Iterator[tuple[int, pa.RecordBatch] | Lost]:
    """The rows in batches, each with the number of its first row. A damaged place costs the rest of its row group."""
    wanted, first = list(columns) if columns is not None else None, 0
    for group in range(file.num_row_groups):
        rows, read = file.metadata.row_group(group).num_rows, 0
        try:
            for batch in file.iter_batches(batch_size=size, row_groups=[group], columns=wanted):
                yield first + read, batch
                read += batch.num_rows
        except Exception as error:  # as in open_parquet
            yield Lost(first + read, rows - read, error)
        first += rows


def rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | None]:
    """Its rows; None for one that Python cannot hold (text that is no UTF-8, a date out of range)."""
    for place in range(batch.num_rows):
        try:
            yield batch.slice(place, 1).to_pylist()[0]
        except Exception:  # as in open_parquet; it costs this row
            yield None
