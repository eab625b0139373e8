"""What was taken down: a list of ids and of the source rows that they named, beside the run and inside the export.

removed.jsonl holds a line per id: id, kinds (the columns of provenance in which it was found), samples (source shard
and key of each), date, reason. Never the contents. An id that named nothing is kept as well: what it names may come.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from megavlm.platform.runs.lines import read_lines
from megavlm.platform.storage import write_atomic

KINDS = ("key", "source_key", "url", "sha256")  # columns of provenance that an id may name; the first that fits tells
SHA256 = re.compile(r"[0-9A-Fa-f]{64}")


@dataclasses.dataclass(frozen=True)
class Blocklist:
    """Lines of removed.jsonl in order."""

    lines: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def read(cls, path: Path) -> Blocklist:
        """The list at `path`, empty when there is none; lines that something else wrote are left out."""
        return cls(tuple(line for line in read_lines(path) if isinstance(line.get("id"), str)))

    def write(self, path: Path) -> None:
        """Replace the list at `path` whole."""
        write_atomic(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self.lines).encode())

    def with_lines(self, lines: Iterable[Mapping[str, Any]]) -> Blocklist:
        """The list with these lines after its own."""
        return Blocklist((*self.lines, *lines))

    @functools.cached_property
    def ids(self) -> frozenset[str]:
        """Every id once."""
        return frozenset(line["id"] for line in self.lines)

    @functools.cached_property
    def rows(self) -> frozenset[tuple[str, str]]:
        """(source shard, source key) of every sample ever removed: its exported key may be another one next time."""
        return frozenset((row["shard"], row["key"]) for line in self.lines for row in line.get("samples", ()))

    def state(self) -> dict[str, Any]:
        """How many ids, and a hash of what is blocked: an export made with the same state lacks the same samples."""
        blocked = json.dumps([sorted(self.ids), sorted(self.rows)])
        return {"ids": len(self.ids), "digest": hashlib.sha256(blocked.encode()).hexdigest()[:16]}

    def blocked(self, table: pa.Table) -> pa.Table:
        """The rows of a provenance table that may not be exported. Its cost does not grow with the list."""
        return table.take(pa.array(self._numbers(table), pa.int64()))

    def allowed(self, table: pa.Table) -> pa.Table:
        """The rows that may."""
        out = set(self._numbers(table))
        return table.take(pa.array([row for row in range(len(table)) if row not in out], pa.int64())) if out else table

    def _numbers(self, table: pa.Table) -> list[int]:
        if not self.lines:
            return []
        rows = zip(table["source_shard"].to_pylist(), table["source_key"].to_pylist(), strict=True)
        found = {number for number, row in enumerate(rows) if row in self.rows}
        for kind in kinds_of(table):
            found |= {number for number, value in enumerate(table[kind].to_pylist()) if value in self.ids}
        return sorted(found)


def kinds_of(table: pa.Table) -> list[str]:
    """Those columns of a provenance table that ids may name."""
    return [kind for kind in KINDS if kind in table.column_names]


def plain_id(text: str) -> str:
    """An id as provenance has it: digests are in lower case there."""
    return text.lower() if SHA256.fullmatch(text) else text
