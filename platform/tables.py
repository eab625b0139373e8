"""Parquet that is in memory already."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq


def read_parquet(data: bytes) -> pa.Table:
    """A whole file's bytes as a table, read in this thread alone; raises what pyarrow raises.

    Arrow's own threads read Python's file objects, and one that ends while Python does aborts the process: one short
    command in six, on a busy machine (apache/arrow issue 34314).
    """
    return pq.read_table(pa.BufferReader(data), use_threads=False, pre_buffer=False)
