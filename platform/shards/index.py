"""The index beside a tar: one row a member (key, ext, offset, size), so that a sample is one byte range away."""

from __future__ import annotations

import io
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from ..storage import Url, exists, file_size, open_file, write_atomic
from .sample import BadMember
from .scan import Member, scan_members

SCHEMA = pa.schema([("key", pa.string()), ("ext", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])

# The tar's size is kept in the index, so that an index left behind by another tar of the same name is not believed.
_TAR_SIZE = b"tar_size"


def index_url(tar: Url) -> str:
    """Where the index of `tar` stands: NAME.tar -> NAME.index.parquet."""
    return f"{str(tar).removesuffix('.tar')}.index.parquet"


def index_tar(tar: Url) -> tuple[pa.Table, list[BadMember]]:
    """Build the index of `tar` by reading its headers; with it the members left out."""
    size = file_size(tar)
    with open_file(tar) as file:
        entries = list(scan_members(file, size))
    bad = [entry for entry in entries if isinstance(entry, BadMember)]
    return to_table((entry for entry in entries if isinstance(entry, Member)), size), bad


def to_table(members: Iterable[Member], tar_size: int) -> pa.Table:
    """Rows of the index (SCHEMA) of a tar of `tar_size` bytes."""
    rows = [(member.key, member.ext, member.offset, member.size) for member in members]
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
    schema = SCHEMA.with_metadata({_TAR_SIZE: str(tar_size).encode()})
    return pa.table(columns, schema=schema)


def write_index(tar: Url, table: pa.Table) -> None:
    """Write the index of `tar` beside it, by rename."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_atomic(index_url(tar), buffer.getvalue())


def read_index(tar: Url) -> pa.Table | None:
    """The index beside `tar`; None when there is none, it is damaged, or it belongs to a tar of another size."""
    if not exists(index_url(tar)):
        return None
    try:
        with open_file(index_url(tar)) as file:
            table = pq.read_table(io.BytesIO(file.read()))
    except pa.ArrowInvalid:
        return None
    metadata = table.schema.metadata or {}
    fits = metadata.get(_TAR_SIZE) == str(file_size(tar)).encode() and table.schema.remove_metadata() == SCHEMA
    return table if fits else None
