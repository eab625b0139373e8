"""Writing a pack manifest: row after row into parts, in a folder that gets its name when all of it is there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megavlm.platform.shards import ShardReader

from .format import (
    BATCHES,
    FORMAT,
    HEAD,
    LEFT_OUT,
    REJECTED,
    ROW,
    ROWS_PER_BLOCK,
    ROWS_PER_PART,
    SETS,
    building,
    part_path,
    shards_path,
)
from .items import FLAT
from .rows import Rows


@contextlib.contextmanager
def manifest_writer(path: Path) -> Iterator[ManifestWriter]:
    """A writer for the manifest at `path`, which appears, in place of one that was there, when the block ends well.

    What a kill left of an earlier attempt is thrown away.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = building(path)
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("rows", "shards"):
        (folder / name).mkdir(parents=True)
    writer = ManifestWriter(folder)
    try:
        yield writer
        writer.close()
        _publish(folder, path)
    finally:
        writer.abandon()
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, path: Path) -> None:
    _flush(folder)
    if path.exists():  # a folder is not replaced by renaming: for a moment there is none
        old = folder.with_suffix(".old")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(path, old)
        os.rename(folder, path)
        shutil.rmtree(old)
    else:
        os.rename(folder, path)


def _flush(folder: Path) -> None:
    """On disk before the rename: a power cut must not leave a named folder of empty files."""
    for file in [file for file in folder.rglob("*") if file.is_file()]:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


class ManifestWriter:
    """Takes global batches in their order. Holds one block of rows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.rows = self.batches = 0
        self._waiting: list[Rows] = []
        self._parts = 0
        self._blocks = 0  # in the open part
        self._part: pa.RecordBatchFileWriter | None = None
        self._ends: IO[bytes] = (folder / BATCHES).open("wb")
        self._ends.write(np.zeros(1, "<i8").tobytes())
        self._left_out = pq.ParquetWriter(folder / REJECTED, LEFT_OUT, compression="zstd")

    def add(self, batch: Rows) -> None:
        """One more global batch."""
        self.rows += len(batch)
        self.batches += 1
        self._ends.write(np.array([self.rows], "<i8").tobytes())
        self._waiting.append(batch)
        if sum(map(len, self._waiting)) >= ROWS_PER_BLOCK:
            whole = Rows.concat(self._waiting)
            while len(whole) >= ROWS_PER_BLOCK:
                self._block(whole[:ROWS_PER_BLOCK])
                whole = whole[ROWS_PER_BLOCK:]
            self._waiting = [whole]

    def left_out(self, lines: Sequence[dict[str, Any]]) -> None:
        """Samples that are not drawn, as records of LEFT_OUT."""
        if lines:
            self._left_out.write_table(pa.Table.from_pylist(list(lines), schema=LEFT_OUT))

    def describe(self, fingerprint: dict[str, Any], sets: dict[str, ShardReader]) -> None:
        """What the manifest was made for, and the sets by their numbers."""
        self._head = {"format": FORMAT, "fingerprint": fingerprint}
        told = [
            {"name": name, "folder": reader.url, "samples": len(reader), "hash": reader.digest}
            for name, reader in sets.items()
        ]
        (self._folder / SETS).write_text(json.dumps(told, indent=1))
        for number, reader in enumerate(sets.values()):
            with pa.ipc.new_file(str(shards_path(self._folder, number)), reader.shards.schema) as out:
                out.write_table(reader.shards.combine_chunks())

    def close(self) -> None:
        """Write what is waiting, and last what makes the folder a manifest."""
        whole = Rows.concat(self._waiting)
        if len(whole):
            self._block(whole)
        self._end_part()
        self._ends.close()
        self._left_out.close()
        counts = {"rows": self.rows, "batches": self.batches}
        (self._folder / HEAD).write_text(json.dumps(self._head | counts, indent=1, sort_keys=True))

    def abandon(self) -> None:
        """Close the files; nothing happens after `close`."""
        self._end_part()
        self._ends.close()
        self._left_out.close()

    def _block(self, rows: Rows) -> None:
        if self._part is None:
            self._part = pa.ipc.new_file(str(part_path(self._folder, self._parts)), ROW)
        self._part.write_batch(to_arrow(rows))
        self._blocks += 1
        if self._blocks * ROWS_PER_BLOCK == ROWS_PER_PART:
            self._end_part()

    def _end_part(self) -> None:
        if self._part is not None:
            self._part.close()
            self._part, self._blocks, self._parts = None, 0, self._parts + 1


def to_arrow(rows: Rows) -> pa.RecordBatch:
    """Rows as a record batch of ROW; every sample weighs 1."""
    ends = pa.array(np.concatenate([np.zeros(1), rows.ends]).astype(np.int32))
    cut = pa.FixedSizeListArray.from_arrays(pa.array(rows.items.images.values.ravel()), 3)
    images = pa.ListArray.from_arrays(pa.array(rows.items.images.offsets.astype(np.int32)), cut)
    flat = {name: pa.array(getattr(rows.items, name)) for name in FLAT}
    flat |= {"images": images, "weight": pa.array(np.ones(len(rows.items), np.float32))}
    return pa.record_batch([pa.ListArray.from_arrays(ends, flat[name]) for name in ROW.names], schema=ROW)
