"""The index beside a tar: one row a member (key, ext, offset, size), so that a sample is one byte range away."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..storage import Url, exists, file_size, open_file, read_range, write_atomic
from ..tables import read_parquet
from .sample import BadMember
from .scan import Member, scan_members

SCHEMA = pa.schema([("key", pa.string()), ("ext", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])

# Kept in the index, so that an index left behind by another tar of the same name is not believed. Size alone does not
# tell: tars are padded to whole records.
_FINGERPRINT = b"tar_fingerprint"
_TAIL = 64 * 1024
# Kept there too, so that a folder of many shards is opened from the ends of their indexes.
_SAMPLES, _DIGEST = b"samples", b"digest"


@dataclasses.dataclass(frozen=True)
class Summary:
    """How many samples a shard has, and a digest of their keys, fields and sizes in their order."""

    samples: int
    digest: str


def summary(table: pa.Table) -> Summary:
    """The summary of an index."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ("key", "ext"):
        digest.update("\0".join(table[name].to_pylist()).encode() + b"\0\0")
    digest.update(table["size"].to_numpy().astype("<i8").tobytes())
    return Summary(len(first_rows(table["key"])), digest.hexdigest())


def first_rows(keys: pa.ChunkedArray) -> np.ndarray:
    """int64 [samples]: the first row of each sample, which are the runs of equal keys."""
    if not len(keys):
        return np.zeros(0, np.int64)
    changed = pc.not_equal(keys[1:], keys[:-1]).to_numpy()
    return np.concatenate([np.zeros(1, np.int64), np.flatnonzero(changed) + 1])


def index_url(tar: Url) -> str:
    """Where the index of `tar` stands: NAME.tar -> NAME.index.parquet."""
    return f"{str(tar).removesuffix('.tar')}.index.parquet"


def index_tar(tar: Url) -> tuple[pa.Table, list[BadMember]]:
    """Build the index of `tar` by reading its headers; with it the members left out."""
    size = file_size(tar)
    with open_file(tar) as file:
        entries = list(scan_members(file, size))
    bad = [entry for entry in entries if isinstance(entry, BadMember)]
    return to_table(entry for entry in entries if isinstance(entry, Member)), bad


def to_table(members: Iterable[Member]) -> pa.Table:
    """The members of a tar as rows of its index (SCHEMA)."""
    rows = [(member.key, member.ext, member.offset, member.size) for member in members]
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
    return pa.table(columns, schema=SCHEMA)


def write_index(tar: Url, table: pa.Table) -> str:
    """Write the index of the finished `tar` beside it, by rename; returns the index's SHA-256."""
    buffer = io.BytesIO()
    told = summary(table)
    known = {_FINGERPRINT: _fingerprint(tar), _SAMPLES: str(told.samples).encode(), _DIGEST: told.digest.encode()}
    pq.write_table(table.replace_schema_metadata(known), buffer)
    write_atomic(index_url(tar), buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def read_index(tar: Url) -> pa.Table | None:
    """The index beside `tar`; None when there is none, it is damaged, or it was made for another tar."""
    if not exists(index_url(tar)):
        return None
    try:
        with open_file(index_url(tar)) as file:
            table = read_parquet(file.read())
    except pa.ArrowInvalid:
        return None
    metadata = table.schema.metadata or {}
    fits = table.schema.remove_metadata() == SCHEMA and metadata.get(_FINGERPRINT) == _fingerprint(tar)
    return table if fits else None


def read_summary(tar: Url) -> Summary | None:
    """The summary that the index beside `tar` carries; None where there is no index, or none that fits and has one."""
    if not exists(index_url(tar)):
        return None
    try:
        with open_file(index_url(tar)) as file:
            known = pq.read_metadata(file).metadata or {}
        told = Summary(int(known[_SAMPLES]), known[_DIGEST].decode())
    except (pa.ArrowInvalid, KeyError, ValueError):
        return None
    return told if known.get(_FINGERPRINT) == _fingerprint(tar) else None


def _fingerprint(tar: Url) -> bytes:
    """Size and a digest of the last bytes of `tar`."""
    size = file_size(tar)
    tail = read_range(tar, max(0, size - _TAIL), min(size, _TAIL))
    return f"{size}:{hashlib.blake2b(tail, digest_size=16).hexdigest()}".encode()
