"""The response cache: what was answered once is never asked again, by no run that shares the folder.

A folder of append-only files, one per writer, one JSON line per reply. `kill -9` costs at most the line being written;
two writers never touch one file; a reader takes whatever whole lines there are. The address of a reply is a hash of
all that decides it, so a line is right for ever, and files may be copied together from anywhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from megavlm.platform.runs.lines import append_line

from .reply import Reply

LINE = re.compile(rb'^\{"key": "([0-9a-f]{64})", .*\}$', re.MULTILINE)
BLOCK = 64 << 20  # bytes read at once
# 16 bytes tell keys apart as far as finding the line goes; the line itself has the whole key
ENTRY = np.dtype([("key", "S16"), ("file", "u4"), ("offset", "u8")])


def address(image: bytes, **decisive: Any) -> str:
    """The key of a reply: SHA-256 over the image's bytes and everything else that decides the caption."""
    parts = {"image": hashlib.sha256(image).hexdigest(), **decisive}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class ResponseCache:
    """28 bytes of memory per reply; the texts stay on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._own = folder / f"replies-{uuid.uuid4().hex}.jsonl"
        self._files: list[Path] = []
        self._read: dict[Path, int] = {}  # bytes of each file that the index covers
        self._indexes: list[np.ndarray] = []  # sorted, each at least twice as long as the next

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply. `get` finds it after the next `refresh`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        append_line(self._own, {"key": key, **dataclasses.asdict(reply)})

    def get(self, key: str) -> Reply | None:
        """The reply under `key`, or None."""
        short = _short(key.encode())
        for index in self._indexes:
            first, last = (int(np.searchsorted(index["key"], short, side)) for side in ("left", "right"))
            for entry in index[first:last]:
                fields = _line_at(self._files[entry["file"]], int(entry["offset"]))
                if fields is not None and fields.pop("key") == key:
                    return Reply(**fields)
        return None

    def refresh(self) -> None:
        """Take in what was written since, by anyone."""
        new = [self._entries(path) for path in sorted(self.folder.glob("replies-*.jsonl"))]
        if any(map(len, new)):
            self._add(np.concatenate(new))

    def _add(self, entries: np.ndarray) -> None:
        """Merge indexes of like size, so that none is sorted again for each few entries more."""
        while self._indexes and len(self._indexes[-1]) < 2 * len(entries):
            entries = np.concatenate([self._indexes.pop(), entries])
        self._indexes.append(entries[np.argsort(entries["key"], kind="stable")])

    def _entries(self, path: Path) -> np.ndarray:
        """Index entries for the whole lines of a file that are not yet known."""
        if path not in self._read:
            self._files.append(path)
            self._read[path] = 0
        return np.concatenate([np.empty(0, ENTRY), *self._blocks(path, self._files.index(path))])

    def _blocks(self, path: Path, number: int) -> Iterator[np.ndarray]:
        with path.open("rb") as file:
            while True:
                start = file.seek(self._read[path])
                block = file.read(BLOCK)
                whole = block[: block.rfind(b"\n") + 1]
                if not whole:
                    return
                lines = LINE.finditer(whole)
                yield np.array([(_short(line[1]), number, start + line.start()) for line in lines], ENTRY)
                self._read[path] = start + len(whole)


def _short(key: bytes) -> bytes:
    """32 hexadecimal digits as 16 bytes, none of them zero: numpy drops zeros at a string's end."""
    return bytes.fromhex(key[:32].decode()).replace(b"\0", b"\1")


def _line_at(path: Path, offset: int) -> dict[str, Any] | None:
    """A line's fields; None for one that was cut short where a brace stood."""
    with path.open("rb") as file:
        file.seek(offset)
        try:
            return dict(json.loads(file.readline()))
        except ValueError:
            return None
