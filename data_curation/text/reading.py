"""Rows of a file of text: .jsonl, .json (a list, or lines all the same), .parquet; the first two also .gz or .zst."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, cast

import pyarrow as pa

from megavlm.platform.errors import InputError
from megavlm.platform.storage import Url, open_file

from ..sources.parquet_rows import Lost, batches, open_parquet, rows
from .sample import BadRow, Row

# What hostile JSON raises beside ValueError: nesting without end.
BAD_JSON = (ValueError, RecursionError)
# What damaged files raise while they are read.
BAD_FILE = (InputError, EOFError, OSError, zlib.error, pa.ArrowException, UnicodeDecodeError)
VISIBLE = re.compile(r"\S")
CHUNK = 1 << 20  # characters of a JSON list read at a time
BATCH = 1024  # rows of a Parquet file read at a time
MAX_ROW = 1 << 26  # bytes of a line, characters of a list's item: beyond, it is no conversation


def read_rows(url: Url, columns: Sequence[str] = ()) -> Iterator[Row | BadRow]:
    """The rows of a file in order, one in memory at a time (Parquet: a batch), a BadRow in the place of each bad one.

    `columns`: all that is wanted of a Parquet file that has any of them, whose pictures are then not read.
    Reasons: invalid_json, invalid_text, not_an_object, too_long; broken_list, truncated_file and unreadable_file end
    the file, whose rows before stay. Raises InputError where there is no such file, OSError where a disk fails.
    """
    with open_file(url) as file:
        try:
            yield from reader_of(str(url))(file, columns)
        except BAD_FILE as error:
            if getattr(error, "errno", None) is not None:  # the disk or the network, not what stands in the file
                raise
            reason = "truncated_file" if isinstance(error, EOFError) else "unreadable_file"
            yield BadRow(reason, f"{type(error).__name__}: {error}"[:300])


def readable(name: str) -> bool:
    """Whether a file's name ends in one of the suffixes."""
    return name.endswith(tuple(READERS))


def reader_of(name: str) -> Reader:
    """The reader for a file of this name, which `readable` holds of."""
    return next(reader for suffix, reader in READERS.items() if name.endswith(suffix))


def _parquet(file: IO[bytes], columns: Sequence[str]) -> Iterator[Row | BadRow]:
    opened = open_parquet(file, "")
    wanted = [name for name in columns if name in opened.schema_arrow.names]
    for piece in batches(opened, wanted or None, BATCH):
        if isinstance(piece, Lost):
            yield BadRow("unreadable_file", str(piece)[:300])
        else:
            yield from _held(piece[1])


def _held(batch: pa.RecordBatch) -> list[Row | BadRow]:
    try:
        return batch.to_pylist()
    except ValueError:  # a text that is no UTF-8: then one by one, which is slower
        return [
            BadRow("invalid_text", "a value that Python cannot hold") if row is None else row for row in rows(batch)
        ]


def _json(file: IO[bytes], columns: Sequence[str]) -> Iterator[Row | BadRow]:
    """A list of objects, or one object a line, which many sets call .json as well."""
    ahead = io.BufferedReader(cast(io.RawIOBase, file))  # compressed streams do not go back
    start = ahead.peek(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    return _list(ahead) if start == b"[" else _lines(ahead, columns)


def _lines(file: IO[bytes], columns: Sequence[str]) -> Iterator[Row | BadRow]:
    while line := file.readline(MAX_ROW):
        if len(line) == MAX_ROW:
            yield BadRow("too_long", f"a line of {MAX_ROW} bytes or more")
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_ROW)
        elif line.strip():
            yield _parsed(line)


def _parsed(line: bytes) -> Row | BadRow:
    try:
        return _object(json.loads(line.decode("utf-8-sig")))
    except BAD_JSON as error:
        return BadRow("invalid_json", str(error)[:300])


def _list(file: IO[bytes]) -> Iterator[Row | BadRow]:
    """The items of a JSON list without holding all of it: ShareGPT's is one of 673 MB."""
    text = _Text(file)
    text.skip("[")
    while not text.ended("]"):
        try:
            item = text.item()
        except BAD_JSON as error:  # where an item that does not parse ends, nobody knows
            yield BadRow("broken_list", str(error)[:300])
            return
        yield _object(item)
        text.skip(",")


class _Text:
    """A window on a JSON text that grows until an item is whole."""

    def __init__(self, file: IO[bytes]) -> None:
        self._stream = codecs.getreader("utf-8-sig")(file)
        self._text, self._at = "", 0

    def skip(self, mark: str) -> None:
        """Pass over white space, and the mark where it follows."""
        while (found := VISIBLE.search(self._text, self._at)) is None and self._grow():
            pass
        self._at = found.start() if found else len(self._text)
        self._at += len(mark) * self._text.startswith(mark, self._at)

    def ended(self, mark: str) -> bool:
        """Whether the list ends here; raises EOFError where the file ends before it."""
        self.skip("")
        if self._at == len(self._text):
            raise EOFError("the list does not end")
        return self._text.startswith(mark, self._at)

    def item(self) -> Any:
        """The next value; raises ValueError when there is none in the rest of the file, or in MAX_ROW characters."""
        while True:
            try:
                value, self._at = json.JSONDecoder().raw_decode(self._text, self._at)
                return value
            except ValueError:
                if len(self._text) - self._at > MAX_ROW or not self._grow():
                    raise

    def _grow(self) -> bool:
        """Read on, as much as is held already at least, so that a long item is not parsed anew for every chunk."""
        more = self._stream.read(max(CHUNK, len(self._text) - self._at))
        self._text, self._at = self._text[self._at :] + more, 0
        return bool(more)


def _object(value: Any) -> Row | BadRow:
    return value if isinstance(value, dict) else BadRow("not_an_object", f"a JSON {type(value).__name__}")


Reader = Callable[[IO[bytes], Sequence[str]], Iterator[Row | BadRow]]


def _gzip(reader: Reader) -> Reader:
    return lambda file, columns: reader(cast(IO[bytes], gzip.GzipFile(fileobj=file)), columns)


def _zstd(reader: Reader) -> Reader:
    def inside(file: IO[bytes], columns: Sequence[str]) -> Iterator[Row | BadRow]:
        return reader(io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")), columns)

    return inside


READERS: dict[str, Reader] = {
    ".jsonl": _lines,
    ".jsonl.gz": _gzip(_lines),
    ".jsonl.zst": _zstd(_lines),
    ".json": _json,
    ".json.gz": _gzip(_json),
    ".json.zst": _zstd(_json),
    ".parquet": _parquet,
}
