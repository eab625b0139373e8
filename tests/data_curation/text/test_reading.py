"""Files of rows: every kind gives the same rows, and damage costs what it has hit."""

from __future__ import annotations

import gzip
import io
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megavlm.data_curation.text import reading
from megavlm.data_curation.text.reading import READERS, read_rows
from megavlm.data_curation.text.sample import BadRow
from megavlm.platform.errors import InputError

ROWS = [{"question": f"Wie groß ist {i}? 漢字", "answer": '"\\n]},{' * i} for i in range(40)]


def encoded(suffix: str, rows: list[dict[str, str]]) -> bytes:
    if suffix == ".parquet":
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer, row_group_size=8)
        return buffer.getvalue()
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    text = json.dumps(rows, indent=1, ensure_ascii=False) if ".json" in suffix and "jsonl" not in suffix else lines
    pack = {"gz": gzip.compress, "zst": lambda data: pa.compress(data, "zstd", asbytes=True)}
    return pack.get(suffix.split(".")[-1], bytes)(text.encode())


def read(path, data: bytes) -> tuple[list[dict[str, str]], list[str]]:
    """Rows and reasons."""
    path.write_bytes(data)
    found = list(read_rows(str(path)))
    bad = [row.reason for row in found if isinstance(row, BadRow)]
    return [dict(row) for row in found if not isinstance(row, BadRow)], bad


@pytest.mark.parametrize("suffix", READERS)
def test_every_kind_of_file_gives_the_same_rows(suffix, tmp_path):
    assert read(tmp_path / f"x{suffix}", encoded(suffix, ROWS)) == (ROWS, [])


@pytest.mark.parametrize("suffix", READERS)
def test_damage_ends_a_file_at_worst_and_says_so(suffix, tmp_path):
    """12 damaged files of each kind: cut, overwritten, emptied. None is fatal."""
    rng, whole = random.Random(suffix), encoded(suffix, ROWS)
    for trial in range(12):
        place = rng.randrange(len(whole))
        cut, overwritten = whole[:place], whole[:place] + rng.randbytes(9) + whole[place + 9 :]
        rows, bad = read(tmp_path / f"x{suffix}", cut if trial % 2 else overwritten)
        assert all(isinstance(row, dict) for row in rows) and len(rows) <= len(ROWS)
        assert set(bad) <= {"invalid_json", "not_an_object", "broken_list", "truncated_file", "unreadable_file"}
        if trial % 2 and ".jsonl" not in suffix:
            assert bad, f"cut at {place}"
        assert rows == ROWS[: len(rows)] or bad or trial % 2 == 0


def test_a_bad_line_costs_itself(tmp_path):
    lines = [b'{"a": "1"}', b"{", b"[1]", b"\xff\xfe", b"", b"[" * 100_000, b'{"a": "2"}']
    rows, bad = read(tmp_path / "x.jsonl", b"\n".join(lines))
    assert rows == [{"a": "1"}, {"a": "2"}]
    assert bad == ["invalid_json", "not_an_object", "invalid_json", "invalid_json"]


def test_lines_and_lists_are_told_apart_whatever_the_file_is_called(tmp_path):
    lines = b'\xef\xbb\xbf{"a": "1"}\n{"a": "2"}\n'
    assert read(tmp_path / "x.json", lines) == ([{"a": "1"}, {"a": "2"}], [])
    assert read(tmp_path / "y.json", b'\xef\xbb\xbf \n[{"a": "1"}, 3]') == ([{"a": "1"}], ["not_an_object"])
    assert read(tmp_path / "z.json", b'[{"a": "1"}, {"a": ') == ([{"a": "1"}], ["broken_list"])
    assert read(tmp_path / "w.json", b'[{"a": "1"}') == ([{"a": "1"}], ["truncated_file"])
    assert read(tmp_path / "v.json", b"[]") == ([], [])


def test_a_row_beyond_the_limit_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_ROW", 64)
    data = b'{"a": "1"}\n{"a": "' + b"x" * 200 + b'"}\n{"a": "2"}\n'
    assert read(tmp_path / "x.jsonl", data) == ([{"a": "1"}, {"a": "2"}], ["too_long"])


def test_a_text_in_parquet_that_is_no_utf8_costs_its_row(tmp_path):
    texts = pa.array([b"one", b"\xff\xfe", b"three"], pa.binary()).view(pa.string())
    buffer = io.BytesIO()
    pq.write_table(pa.table({"a": texts}), buffer)
    assert read(tmp_path / "x.parquet", buffer.getvalue()) == ([{"a": "one"}, {"a": "three"}], ["invalid_text"])


def test_a_disk_that_fails_is_no_bad_row(tmp_path, monkeypatch):
    class Failing(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: object) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(reading, "open_file", lambda url: Failing())
    for name in ("x.jsonl", "x.json", "x.jsonl.gz", "x.json.zst"):
        with pytest.raises(OSError, match="Input/output error"):
            list(read_rows(name))


def test_no_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        list(read_rows(str(tmp_path / "x.jsonl")))


VALUES = st.dictionaries(st.text(max_size=3), st.text(max_size=9) | st.integers() | st.lists(st.text(max_size=3)))


@settings(max_examples=60)
@given(st.lists(VALUES, max_size=12), st.integers(1, 20), st.sampled_from([None, 1]))
def test_a_list_read_in_pieces_is_the_list(rows, chunk, indent):
    text = reading._Text(io.BytesIO(json.dumps(rows, indent=indent, ensure_ascii=False).encode("utf-8", "replace")))
    before, reading.CHUNK = reading.CHUNK, chunk
    try:
        text.skip("[")
        found = []
        while not text.ended("]"):
            found.append(text.item())
            text.skip(",")
    finally:
        reading.CHUNK = before
    assert found == json.loads(json.dumps(rows, ensure_ascii=False).encode("utf-8", "replace"))
