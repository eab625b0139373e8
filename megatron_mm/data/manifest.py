"""The pack manifest: a Parquet file whose row i says exactly what packed sequence i of a stage holds.

Decided before training and written down, so that every layout sees the same samples in the same order, and what a step
saw can be read afterwards. Row i belongs to global batch i // packs_per_batch.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.storage import open_atomic

METADATA_KEY = b"megavlm.fingerprint"
ENTRY = pa.struct([
    ("set", pa.string()), ("index", pa.int64()), ("key", pa.string()), ("epoch", pa.int32()),
    ("tokens", pa.int32()), ("tiles", pa.int32()), ("targets", pa.int32()), ("weight", pa.float32()),
    ("images", pa.list_(pa.int16())),
])  # fmt: skip
SCHEMA = pa.schema([
    ("batch", pa.int64()), ("tokens", pa.int32()), ("tiles", pa.int32()), ("targets", pa.int32()),
    ("samples", pa.list_(ENTRY)),
])  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Entry:
    """One sample in a pack: its set and number there, its pass over the set, its size, and its loss weight."""

    set: str
    index: int
    key: str
    epoch: int
    tokens: int
    tiles: int
    targets: int
    weight: float
    images: list[int]  # tiles of each image, thumbnail included


@dataclasses.dataclass(frozen=True)
class Pack:
    """One packed sequence: its place and its samples in their order."""

    row: int
    batch: int
    samples: tuple[Entry, ...]

    @property
    def tokens(self) -> int:
        """Tokens before padding."""
        return sum(entry.tokens for entry in self.samples)

    @property
    def tiles(self) -> int:
        """Tiles of all images, thumbnails included."""
        return sum(entry.tiles for entry in self.samples)

    @property
    def targets(self) -> int:
        """Tokens that are learnt."""
        return sum(entry.targets for entry in self.samples)

    def record(self) -> dict[str, Any]:
        """The row as plain data."""
        sizes = {"batch": self.batch, "tokens": self.tokens, "tiles": self.tiles, "targets": self.targets}
        return sizes | {"samples": [dataclasses.asdict(entry) for entry in self.samples]}


def write_manifest(path: Path, packs: list[Pack], fingerprint: dict[str, Any]) -> None:
    """Write all rows and the fingerprint; the file appears whole or not at all."""
    metadata = {METADATA_KEY: json.dumps(fingerprint, sort_keys=True).encode()}
    table = pa.Table.from_pylist([pack.record() for pack in packs], schema=SCHEMA.with_metadata(metadata))
    with open_atomic(path) as file:
        pq.write_table(table, file, compression="zstd")


class Manifest:
    """A manifest opened for reading; `manifest[i]` is pack i."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self._table = pq.read_table(self.path, memory_map=True)
        except FileNotFoundError:
            raise InputError(f"no pack manifest at {path}", fix="`megavlm data pack RECIPE` writes it") from None
        except pa.ArrowInvalid as error:
            raise InputError(f"not a pack manifest: {error}", where=str(path)) from None
        metadata = self._table.schema.metadata or {}
        if METADATA_KEY not in metadata:
            raise InputError("a Parquet file, but no pack manifest: it has no fingerprint", where=str(path))
        self.fingerprint: dict[str, Any] = json.loads(metadata[METADATA_KEY])

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, row: int) -> Pack:
        if not 0 <= row < len(self):
            raise InputError(
                f"row {row} is not in the manifest", where=str(self.path), fix=f"rows run from 0 to {len(self) - 1}"
            )
        record = self._table.slice(row, 1).to_pylist()[0]
        return Pack(row, record["batch"], tuple(Entry(**entry) for entry in record["samples"]))

    def column(self, name: str) -> list[Any]:
        """A whole column: "tokens", "tiles" or "targets" as integers, "samples" as lists of records."""
        return self._table.column(name).to_pylist()

    @property
    def sequence_length(self) -> int:
        """Tokens of a packed sequence, padding included."""
        return int(self.fingerprint["sequence_length"])

    @property
    def packs_per_batch(self) -> int:
        """Packs of one global batch."""
        return int(self.fingerprint["packs_per_batch"])

    def check(self, expected: dict[str, Any], packs: int) -> None:
        """Raise ConfigError unless this manifest was made for `expected` and holds at least `packs` rows."""
        wrong = sorted(
            key for key in expected.keys() | self.fingerprint.keys() if expected.get(key) != self.fingerprint.get(key)
        )
        if wrong:
            pairs = "; ".join(
                f"{key}: packed with {self.fingerprint.get(key)!r}, now {expected.get(key)!r}" for key in wrong
            )
            raise ConfigError(
                f"the pack manifest was made for another configuration: {pairs}",
                where=str(self.path),
                fix="train into another folder (--out), or delete the manifest to pack anew",
            )
        if len(self) < packs:
            raise ConfigError(
                f"the pack manifest holds {len(self)} packs, and {packs} are needed", where=str(self.path)
            )
