"""Random access to shards: a sample is one byte range of one tar."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import InputError
from ..storage import Url, join, list_files, read_range
from .index import Summary, first_rows, index_tar, read_index, read_summary, summary
from .sample import BadMember, Sample

SHARDS = pa.schema([("name", pa.string()), ("samples", pa.int64()), ("digest", pa.string())])
HELD = 64  # shards whose indexes are in memory
_THREADS = 16


class ShardReader:
    """The samples of one tar, or of all tars of a folder in order of name.

    Holds how many samples each shard has, and the indexes of the `held` shards used last: memory does not grow with the
    samples. Missing and unfitting indexes are rebuilt in memory by scanning; `bad` then lists what the scan left out.
    Holds no open file, so it may be copied into worker processes. Raises InputError when nothing is there.

    `shards` is such a table (SHARDS) of an earlier reader: with it nothing is listed or read before it is used, and a
    shard that has changed since then is an InputError when it is.
    """

    def __init__(self, folder_or_tar: Url, shards: pa.Table | None = None, held: int = HELD) -> None:
        self.url = str(folder_or_tar)
        self.bad: list[BadMember] = []
        self._held = _Held(held)
        self.shards = self._summarised() if shards is None else shards
        self.starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.shards["samples"].to_numpy())])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def digest(self) -> str:
        """A hash of the set: other samples, another order or other sizes give another one."""
        samples, digests = (self.shards[name].to_pylist() for name in ("samples", "digest"))
        lines = (f"{count} {digest}\n" for count, digest in zip(samples, digests, strict=True) if count)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def tar(self, shard: int) -> str:
        """The url of a shard, by its number."""
        return self.url if self.url.endswith(".tar") else join(self.url, self.shards["name"][shard].as_py())

    def keys(self) -> Iterator[str]:
        """The keys in order, shard by shard; sample i has key(i)."""
        for shard in range(len(self.shards)):
            yield from self._shard(shard).keys.to_pylist()

    def key(self, number: int) -> str:
        """The key of one sample."""
        shard, inside = self._place(number)
        return str(self._shard(shard).keys[inside].as_py())

    def find(self, key: str) -> int:
        """The number of the first sample with that key, by going through the indexes; KeyError when none has it."""
        for shard in range(len(self.shards)):
            inside = pc.index(self._shard(shard).keys, key).as_py()
            if inside >= 0:
                return int(self.starts[shard]) + int(inside)
        raise KeyError(key)

    def fields(self, which: int | str) -> dict[str, int]:
        """Extension -> size in bytes of a sample's fields, from the index alone."""
        shard, inside = self._place(which)
        return {ext: size for ext, _, size in self._shard(shard).members(inside)}

    def read(self, which: int | str, only: Collection[str] | None = None) -> Sample:
        """Sample number `which` (IndexError outside 0..len-1), or the first with that key (KeyError if none has).

        With `only`, of its fields those named here, and nothing else is read.
        """
        number, inside = self._place(which)
        shard = self._shard(number)
        key = str(shard.keys[inside].as_py())
        members = [member for member in shard.members(inside) if only is None or member[0] in only]
        if not members:
            return Sample(key, {})
        start = members[0][1]
        # Members of a sample lie side by side, so one range holds them all.
        data = read_range(self.tar(number), start, max(offset + size for _, offset, size in members) - start)
        return Sample(key, {ext: data[offset - start : offset - start + size] for ext, offset, size in members})

    def _place(self, which: int | str) -> tuple[int, int]:
        """(shard, number in the shard) of a sample."""
        number = self.find(which) if isinstance(which, str) else which
        if not 0 <= number < len(self):
            raise IndexError(f"sample {which} of {len(self)} in {self.url}")
        shard = int(np.searchsorted(self.starts, number, side="right")) - 1
        return shard, number - int(self.starts[shard])

    def _shard(self, number: int) -> _Shard:
        found = self._held.get(number)
        if found is None:
            found = _Shard(_index(self.tar(number))[0])
            if found.digest != self.shards["digest"][number].as_py():
                raise InputError("this shard has changed since its samples were counted", where=self.tar(number))
            self._held.put(number, found)
        return found

    def _summarised(self) -> pa.Table:
        """What every shard holds, from the ends of their indexes where they say it."""
        tars = [self.url] if self.url.endswith(".tar") else list_files(self.url, ".tar")
        if not tars:
            raise InputError("no shard (*.tar) in this folder", where=self.url)
        with ThreadPoolExecutor(min(_THREADS, len(tars))) as pool:
            told = list(pool.map(_summary, tars))
        self.bad = [bad for _, left_out in told for bad in left_out]
        names = [PurePosixPath(tar).name for tar in tars]
        return pa.table([names, [one.samples for one, _ in told], [one.digest for one, _ in told]], schema=SHARDS)


class _Shard:
    """One shard's index, parsed."""

    def __init__(self, table: pa.Table) -> None:
        first = first_rows(table["key"])
        self.digest = summary(table).digest
        self.keys: pa.Array = table["key"].combine_chunks().take(pa.array(first))
        self._starts = np.append(first, table.num_rows)
        self._exts: pa.Array = table["ext"].combine_chunks().dictionary_encode()
        self._offsets, self._sizes = table["offset"].to_numpy(), table["size"].to_numpy()

    def members(self, inside: int) -> list[tuple[str, int, int]]:
        """(extension, offset, size) of each member of a sample."""
        rows = range(int(self._starts[inside]), int(self._starts[inside + 1]))
        return [(self._exts[row].as_py(), int(self._offsets[row]), int(self._sizes[row])) for row in rows]


def _index(tar: str) -> tuple[pa.Table, Sequence[BadMember]]:
    table = read_index(tar)
    return (table, []) if table is not None else index_tar(tar)


def _summary(tar: str) -> tuple[Summary, Sequence[BadMember]]:
    told = read_summary(tar)
    if told is not None:
        return told, []
    table, bad = _index(tar)
    return summary(table), bad


class _Held:
    """The shards used last. A copy in another process starts with none."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._shards: OrderedDict[int, _Shard] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[_Held], tuple[int]]:
        return _Held, (self._limit,)

    def get(self, number: int) -> _Shard | None:
        with self._lock:
            if number in self._shards:
                self._shards.move_to_end(number)
            return self._shards.get(number)

    def put(self, number: int, shard: _Shard) -> None:
        with self._lock:
            self._shards[number] = shard
            while len(self._shards) > self._limit:
                self._shards.popitem(last=False)
