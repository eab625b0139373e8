"""The rows of a snapshot's Parquet files, read as they are asked for: nothing is unpacked into a cache on disk."""

from __future__ import annotations

import functools
import io
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megavlm.platform.errors import InputError

IMAGE_FIELDS = {"bytes", "path"}  # of the hub's image columns


class Rows:
    """A split's rows by number, as dictionaries. With `images`, image columns are PIL images, else they are left out.

    Raises InputError for a file whose footer does not read.
    """

    def __init__(self, paths: Sequence[Path], *, images: bool) -> None:
        self._files = [_open(path) for path in paths]
        self._groups = [(file, number) for file in self._files for number in range(file.num_row_groups)]
        self._ends = list(accumulate(file.metadata.row_group(number).num_rows for file, number in self._groups))
        self._where = str(paths[0])
        schema = self._files[0].schema_arrow
        self.features: dict[str, Any] = {field.name: field.type for field in schema}
        self._image_columns = {field.name for field in schema if _holds_images(field.type)}
        self._columns = None if images else [name for name in self.features if name not in self._image_columns]
        self._group = functools.lru_cache(maxsize=2)(self._read_group)  # rows are asked for about in order

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> dict[str, Any]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        place = bisect_right(self._ends, number)
        start = self._ends[place - 1] if place else 0
        [row] = self._group(place).slice(number - start, 1).to_pylist()
        return {name: _opened(value) if name in self._image_columns else value for name, value in row.items()}

    def column(self, name: str) -> list[Any]:
        """One column of all rows; raises InputError where there is none."""
        if name not in self.features:
            fix = f"it has: {', '.join(self.features)}; fetch the snapshot that the benchmark names"
            raise InputError(f"no column '{name}'", where=self._where, fix=fix)
        return [value for file in self._files for value in file.read([name])[name].to_pylist()]

    def _read_group(self, place: int) -> pa.Table:
        file, number = self._groups[place]
        return file.read_row_group(number, columns=self._columns)


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"not readable: {error}", where=str(path), fix="fetch the file again") from None


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_images(kind.value_type)
    return pa.types.is_struct(kind) and {kind.field(i).name for i in range(kind.num_fields)} == IMAGE_FIELDS


def _opened(value: Any) -> Any:
    """A stored image, or several, as PIL images; None stays None. Raises what Pillow raises."""
    from PIL import Image

    if isinstance(value, list):
        return [_opened(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    return None if value["bytes"] is None else Image.open(io.BytesIO(value["bytes"]))
