"""JSON lines that survive a crash, and small files that are either whole or absent."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

TAIL_BYTES = 1 << 16  # read first when only the end of a file is asked for


def append_line(path: Path, fields: dict[str, Any]) -> None:
    """Append one JSON line in a single write; several processes may append to one file.

    When the last line was torn by a crash it is closed first, so that it spoils no line but itself. The line that
    another process is just writing looks torn as well: an empty line more, which readers leave out.
    Raises ValueError for NaN and infinity, which JSON has no word for, and TypeError for what is no JSON value.
    """
    data = json.dumps(fields, allow_nan=False).encode() + b"\n"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            data = b"\n" + data
        os.write(handle, data)
    finally:
        os.close(handle)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a JSON-lines file, oldest first; torn lines are left out, a missing file is empty."""
    if not path.exists():
        return []
    parsed = (_parse(line) for line in path.read_bytes().split(b"\n"))
    return [fields for fields in parsed if fields is not None]


def last_line(path: Path) -> dict[str, Any] | None:
    """The last whole line of a JSON-lines file, however long the file is; None when there is none."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        size, span = file.seek(0, os.SEEK_END), TAIL_BYTES
        while True:
            file.seek(max(size - span, 0))
            parts = file.read(min(span, size)).split(b"\n")
            whole = parts if span >= size else parts[1:]  # the first may have begun before
            found = next((fields for line in reversed(whole) if (fields := _parse(line)) is not None), None)
            if found is not None or span >= size:
                return found
            span *= 16


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        fields = json.loads(line)
    except ValueError:  # covers bytes that are no UTF-8
        return None
    return fields if isinstance(fields, dict) else None


def write_whole(path: Path, text: str) -> None:
    """Write beside and rename: readers see the old file or the new one, never a part."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    beside.replace(path)
