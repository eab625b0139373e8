"""Rows put in another order on disk: files of parts, of which any one is read without the others.

Everything that needs all images of a cluster together goes through these: whoever reads shards writes a file whose
part b holds the rows of bucket b, and whoever handles bucket b reads part b of all files. The way back to shards is the
same.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

Result = TypeVar("Result")
Columns = Mapping[str, np.ndarray]  # columns of one length; [n, w] holds w values in each row


def write_parts(path: Path, columns: Columns, order: np.ndarray, ends: np.ndarray) -> None:
    """An Arrow file whose part p holds rows order[ends[p - 1]:ends[p]]; whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    starts = np.concatenate([[0], ends[:-1]])
    with whole(path) as beside, pa.OSFile(str(beside), "wb") as sink:
        first = _batch({name: values[:0] for name, values in columns.items()})
        with pa.ipc.new_file(sink, first.schema) as writer:
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
                writer.write_batch(_batch({name: values[order[start:end]] for name, values in columns.items()}))


def sorted_parts(key: np.ndarray, part: np.ndarray, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """`order` and `ends` of write_parts: by `key` int [n] (stable), `part` int [n] being a rising function of it."""
    order = np.argsort(key, kind="stable")
    return order, np.searchsorted(part[order], np.arange(parts), side="right")


def read_part(paths: Sequence[Path], part: int) -> dict[str, np.ndarray]:
    """Part `part` of several files of the same columns, one after the other. There must be at least one file.

    The files are opened one at a time: there may be thousands, and no row is in memory twice.
    """
    total = sum(_with_batch(path, part, len) for path in paths)
    columns: dict[str, np.ndarray] = {}
    filled = 0
    for path in paths:
        found = _with_batch(path, part, _columns)
        for name, values in found.items():
            column = columns.setdefault(name, np.empty((total, *values.shape[1:]), values.dtype))
            column[filled : filled + len(values)] = values
        filled += len(values)
    return columns


def _with_batch(path: Path, part: int, look: Callable[[pa.RecordBatch], Result]) -> Result:
    with pa.memory_map(str(path)) as source:
        return look(pa.ipc.open_file(source).get_batch(part))


def _columns(batch: pa.RecordBatch) -> dict[str, np.ndarray]:
    return {name: _values(batch.column(name)) for name in batch.schema.names}


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place to write to; what was written there gets the name `path` when the block ends well."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _batch(columns: Columns) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({name: _array(values) for name, values in columns.items()})


def _array(values: np.ndarray) -> pa.Array:
    if values.dtype == object:
        return pa.array(values, pa.string())
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _values(column: pa.Array) -> np.ndarray:
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy(zero_copy_only=False)
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
