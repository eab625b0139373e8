"""The index beside a tar: one row a member (key, ext, offset, size), so that a sample is one byte range away."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from ..storage import Url, exists, file_size, open_file, read_range, write_atomic
from .sample import BadMember
from .scan import Member, scan_members

SCHEMA = pa.schema([("key", pa.string()), ("ext", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])

# Kept in the index, so that an index left behind by another tar of the same name is not believed. Size alone does not
# tell: tars are padded to whole records.
_FINGERPRINT = b"tar_fingerprint"
_TAIL = 64 * 1024


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
    pq.write_table(table.replace_schema_metadata({_FINGERPRINT: _fingerprint(tar)}), buffer)
    write_atomic(index_url(tar), buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def read_index(tar: Url) -> pa.Table | None:
    """The index beside `tar`; None when there is none, it is damaged, or it was made for another tar."""
    if not exists(index_url(tar)):
        return None
    try:
        with open_file(index_url(tar)) as file:
            table = pq.read_table(io.BytesIO(file.read()))
    except pa.ArrowInvalid:
        return None
    metadata = table.schema.metadata or {}
    fits = table.schema.remove_metadata() == SCHEMA and metadata.get(_FINGERPRINT) == _fingerprint(tar)
    return table if fits else None


def _fingerprint(tar: Url) -> bytes:
    """Size and a digest of the last bytes of `tar`."""
    size = file_size(tar)
    tail = read_range(tar, max(0, size - _TAIL), min(size, _TAIL))
    return f"{size}:{hashlib.blake2b(tail, digest_size=16).hexdigest()}".encode()
