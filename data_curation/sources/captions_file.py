"""One file that names images and their captions: JSON lines, CSV or Parquet."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

from megavlm.platform.errors import InputError
from megavlm.platform.storage import open_file

CAPTIONS_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
FILE_COLUMNS = ("file_name", "image", "file", "path")
CAPTION_COLUMNS = ("text", "caption", "txt")


@dataclasses.dataclass(frozen=True)
class CaptionRow:
    """What a row says of the image `file`, or with `reason` why it says nothing; `place` is where it stands."""

    place: str
    file: str = ""
    caption: str | None = None
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    reason: str | None = None
    detail: str | None = None


def read_captions(url: str) -> Iterator[CaptionRow]:
    """The rows in order; one that cannot be read is told and costs no other.

    Raises InputError when the file is missing, of no known kind, or unreadable as a whole.
    """
    ending = url.rsplit(".", 1)[-1].lower()
    if ending not in READERS:
        raise InputError(f"no reader for captions in '.{ending}'", where=url, fix=f"one of: {', '.join(READERS)}")
    with open_file(url) as file:
        data = file.read()
    for number, row in enumerate(READERS[ending](data, url), start=1):
        yield _row(f"{url.rsplit('/', 1)[-1]}:{number}", row)


def _row(place: str, row: object) -> CaptionRow:
    if isinstance(row, Exception):
        return CaptionRow(place, reason="invalid_json", detail=str(row))
    if not isinstance(row, dict):
        return CaptionRow(place, reason="invalid_json", detail=f"a JSON {type(row).__name__}, not an object")
    name = next((row[column] for column in FILE_COLUMNS if isinstance(row.get(column), str)), None)
    if not name:
        return CaptionRow(place, reason="invalid_json", detail=f"no column of {', '.join(FILE_COLUMNS)}")
    caption = next((row[column] for column in CAPTION_COLUMNS if isinstance(row.get(column), str)), None)
    return CaptionRow(place, name, caption, row)


def _json_lines(data: bytes, url: str) -> Iterator[object]:
    for line in data.splitlines():
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                yield ValueError(str(error))


def _csv(data: bytes, url: str) -> Iterator[object]:
    lines = csv.DictReader(io.StringIO(data.decode("utf-8-sig", errors="replace"), newline=""))
    try:
        for row in lines:
            yield {name: value for name, value in row.items() if isinstance(name, str)}
    except csv.Error as error:
        yield ValueError(str(error))


def _parquet(data: bytes, url: str) -> Iterator[object]:
    from megavlm.platform.tables import read_parquet

    try:
        rows = read_parquet(data).to_pylist()
    except Exception as error:  # pyarrow raises a dozen types on hostile bytes
        raise InputError(f"no readable Parquet file: {error}", where=url, fix="write it again") from error
    yield from rows


READERS: dict[str, Callable[[bytes, str], Iterator[object]]] = {
    "jsonl": _json_lines,
    "csv": _csv,
    "parquet": _parquet,
}
