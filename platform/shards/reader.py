"""Random access to shards: a sample is one byte range of one tar."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pyarrow as pa

from ..errors import InputError
from ..storage import Url, list_files, read_range
from .index import index_tar, read_index
from .sample import BadMember, Sample


class ShardReader:
    """The samples of one tar, or of all tars of a folder in order of name.

    Missing and unfitting indexes are rebuilt in memory by scanning; `bad` then lists what the scan left out. Holds no
    open file, so it may be copied into worker processes. Raises InputError when nothing is there.
    """

    def __init__(self, folder_or_tar: Url) -> None:
        self.url = str(folder_or_tar)
        self.tars = [self.url] if self.url.endswith(".tar") else list_files(self.url, ".tar")
        if not self.tars:
            raise InputError("no shard (*.tar) in this folder", where=self.url)
        self.bad: list[BadMember] = []
        table = pa.concat_tables([self._index(number, tar) for number, tar in enumerate(self.tars)])
        self._exts = table["ext"].to_pylist()
        self._shards, self._offsets, self._sizes = (table[name].to_numpy() for name in ("shard", "offset", "size"))
        self._keys, self._starts = _samples(table["key"].to_pylist(), self._shards)
        self._number: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def keys(self) -> list[str]:
        """The keys in order; sample i is keys()[i]."""
        return list(self._keys)

    def fields(self, which: int | str) -> dict[str, int]:
        """Extension -> size in bytes of a sample's fields, from the index alone."""
        rows = self._rows(which)
        return {self._exts[row]: int(self._sizes[row]) for row in rows}

    def read(self, which: int | str, only: Collection[str] | None = None) -> Sample:
        """Sample number `which` (IndexError outside 0..len-1), or the first with that key (KeyError if none has).

        With `only`, of its fields those named here, and nothing else is read.
        """
        rows = [row for row in self._rows(which) if only is None or self._exts[row] in only]
        if not rows:
            return Sample(self._keys[self._sample(which)], {})
        start = int(self._offsets[rows[0]])
        ends = [int(self._offsets[row] + self._sizes[row]) for row in rows]
        # Members of a sample lie side by side, so one range holds them all.
        data = read_range(self.tars[self._shards[rows[0]]], start, max(ends) - start)
        slices = {
            self._exts[row]: (int(self._offsets[row]) - start, end - start) for row, end in zip(rows, ends, strict=True)
        }
        return Sample(self._keys[self._sample(which)], {ext: data[low:high] for ext, (low, high) in slices.items()})

    def _rows(self, which: int | str) -> range:
        number = self._sample(which)
        return range(self._starts[number], self._starts[number + 1])

    def _sample(self, which: int | str) -> int:
        if isinstance(which, str):
            if not self._number:
                pairs = list(enumerate(self._keys))
                self._number = {key: number for number, key in reversed(pairs)}
            return self._number[which]
        if not 0 <= which < len(self):
            raise IndexError(f"sample {which} of {len(self)} in {self.url}")
        return which

    def _index(self, number: int, tar: str) -> pa.Table:
        table = read_index(tar)
        if table is None:
            table, bad = index_tar(tar)
            self.bad += bad
        table = table.replace_schema_metadata(None)
        return table.append_column("shard", pa.array(np.full(table.num_rows, number, dtype=np.int32)))


def _samples(keys: list[str], shards: np.ndarray) -> tuple[list[str], list[int]]:
    """Keys of the samples (runs of equal key and shard), and the first row of each, with the row count at the end."""
    starts = [row for row, key in enumerate(keys) if row == 0 or key != keys[row - 1] or shards[row] != shards[row - 1]]
    return [keys[row] for row in starts], [*starts, len(keys)]
