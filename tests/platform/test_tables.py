"""Parquet that is in memory is read as from a file."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megavlm.platform.tables import read_parquet


def test_bytes_are_read_as_the_file_is(tmp_path: Path) -> None:
    table = pa.table({"key": [f"{k:05d}" for k in range(5000)], "size": list(range(5000))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    assert read_parquet((tmp_path / "a.parquet").read_bytes()).equals(pq.read_table(tmp_path / "a.parquet"))


def test_what_is_no_parquet_is_arrow_s_error() -> None:
    with pytest.raises(pa.ArrowInvalid):
        read_parquet(b"PAR1 not")
