"""The pack manifest: a folder that says exactly what every packed sequence of a stage holds, and which batch it is in.

    manifest.json       what it was made for, and how many rows and global batches it has
    batches.i64         the first row of each global batch, and behind the last one the number of rows; little-endian
    rows/NNNNNN.arrow   ROWS_PER_PART rows each, in record batches of ROWS_PER_BLOCK (Arrow IPC, uncompressed)
    sets.json           the sets: an entry's `set` is the place here
    shards/NNNN.arrow   the shards of each set, with how many samples each had
    rejected.parquet    samples left out, and why

Decided before training and written down, so that every layout sees the same samples in the same order, and what a step
saw can be read afterwards. Files are mapped, and a row's place is arithmetic: opening, and looking up a step, cost the
same whatever the number of rows.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.images import ImageTiles
from megavlm.platform.shards import ShardReader
from megavlm.platform.shards.reader import HELD

from .format import BATCHES, FORMAT, HEAD, ROWS_PER_BLOCK, ROWS_PER_PART, SETS, part_path, shards_path

PACK_ANEW = "`megavlm data pack RECIPE` writes it"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One sample in a pack: its set and number there, its pass over the set, its size, and its loss weight.

    `substitute`: number of the sample of the same set that takes its place when it turns out unreadable, -1 for none.
    """

    set: str
    index: int
    epoch: int
    tokens: int
    targets: int
    weight: float
    images: tuple[ImageTiles, ...]  # how each image is cut
    substitute: int

    @property
    def tiles(self) -> int:
        """Tiles of all its images."""
        return sum(image.tiles for image in self.images)


def substitute(entry: Entry) -> Entry | None:
    """What takes the place of an unreadable sample; None when nothing does.

    It has the same `images`. Its own tokens and targets are known when it is read: `tokens` of the result is the room
    it has to fit into, and what it leaves empty is padding.
    """
    if entry.substitute < 0:
        return None
    return dataclasses.replace(entry, index=entry.substitute, substitute=-1)


@dataclasses.dataclass(frozen=True)
class Pack:
    """One packed sequence: its place and its samples in their order."""

    row: int
    batch: int
    entries: tuple[Entry, ...]

    @property
    def tokens(self) -> int:
        """Tokens before padding."""
        return sum(entry.tokens for entry in self.entries)

    @property
    def tiles(self) -> int:
        """Tiles of all images, thumbnails included."""
        return sum(entry.tiles for entry in self.entries)

    @property
    def targets(self) -> int:
        """Tokens that are learnt."""
        return sum(entry.targets for entry in self.entries)

    def record(self) -> dict[str, Any]:
        """The row as plain data."""
        place = {"row": self.row, "batch": self.batch}
        sizes = {"tokens": self.tokens, "tiles": self.tiles, "targets": self.targets}
        return place | sizes | {"entries": [dataclasses.asdict(entry) for entry in self.entries]}


class Manifest:
    """A manifest opened for reading; `manifest[row]` is one pack, `batch(step)` those of a global batch."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        head = _head(self.path)
        self.fingerprint: dict[str, Any] = head["fingerprint"]
        self.batches: int = head["batches"]
        self._rows: int = head["rows"]
        self.sets: list[dict[str, Any]] = json.loads((self.path / SETS).read_text())
        self._first = np.memmap(self.path / BATCHES, "<i8", "r", shape=(self.batches + 1,))
        self._part = functools.lru_cache(4)(lambda part: _open(part_path(self.path, part)))
        self._block = functools.lru_cache(4)(self._read_block)

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: int) -> Pack:
        if not 0 <= row < len(self):
            raise InputError(
                f"row {row} is not in the manifest", where=str(self.path), fix=f"rows run from 0 to {len(self) - 1}"
            )
        block = self._block(row // ROWS_PER_BLOCK)
        return self._packs(block.slice(row % ROWS_PER_BLOCK, 1), row, self.batch_of(row))[0]

    def batch_of(self, row: int) -> int:
        """The global batch that a row is in."""
        return int(np.searchsorted(self._first, row, side="right")) - 1

    def batch_rows(self, step: int) -> range:
        """The rows of global batch `step` (from 0)."""
        if not 0 <= step < self.batches:
            fix = f"global batches run from 0 to {self.batches - 1}"
            raise InputError(f"global batch {step} is not in the manifest", where=str(self.path), fix=fix)
        return range(int(self._first[step]), int(self._first[step + 1]))

    def batch(self, step: int) -> list[Pack]:
        """The packs of global batch `step`."""
        rows, found = self.batch_rows(step), []
        row = rows.start
        while row < rows.stop:
            inside = row % ROWS_PER_BLOCK
            block = self._block(row // ROWS_PER_BLOCK).slice(inside, min(ROWS_PER_BLOCK - inside, rows.stop - row))
            found += self._packs(block, row, step)
            row += block.num_rows
        return found

    def blocks(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(first row, record batch) through the whole manifest, one at a time."""
        for block in range(-(-len(self) // ROWS_PER_BLOCK)):
            yield block * ROWS_PER_BLOCK, self._read_block(block)

    def _read_block(self, block: int) -> pa.RecordBatch:
        part, inside = divmod(block, ROWS_PER_PART // ROWS_PER_BLOCK)
        return self._part(part).get_batch(inside)

    def _packs(self, block: pa.RecordBatch, row: int, batch: int) -> list[Pack]:
        names = [told["name"] for told in self.sets]
        packs = []
        for k, told in enumerate(block.to_pylist()):
            columns = [told[name] for name in ("index", "epoch", "tokens", "targets", "weight")]
            images = (tuple(ImageTiles(*image) for image in each) for each in told["images"])
            columns = [[names[number] for number in told["set"]], *columns, images]
            entries = map(Entry, *columns, told["substitute"])
            packs.append(Pack(row + k, batch, tuple(entries)))
        return packs

    @property
    def sequence_length(self) -> int:
        """Tokens of a packed sequence, padding included."""
        return int(self.fingerprint["sequence_length"])

    def open_sets(self, folders: Mapping[str, str]) -> dict[str, ShardReader]:
        """The sets, in the folders given, without listing them: what they held is written here."""
        # two blocks of shards are read side by side where one ends, and a window of packs reaches back into a third
        held = max(HELD, 3 * int(self.fingerprint.get("shuffle_window", 1)))
        tables = {told["name"]: _open(shards_path(self.path, k)).read_all() for k, told in enumerate(self.sets)}
        return {name: ShardReader(folders[name], table, held) for name, table in tables.items()}

    def check(self, expected: Mapping[str, Any], steps: int) -> None:
        """Raise ConfigError unless this manifest was made for `expected` and holds at least `steps` global batches.

        What `expected` says nothing of is not compared, but for a share of text: saying nothing means none.
        """
        expected = {"text": None, **expected}
        wrong = sorted(key for key, value in expected.items() if value != self.fingerprint.get(key))
        if wrong:
            pairs = "; ".join(
                f"{key}: packed with {self.fingerprint.get(key)!r}, now {expected.get(key)!r}" for key in wrong
            )
            raise ConfigError(
                f"the pack manifest was made for another configuration: {pairs}",
                where=str(self.path),
                fix="train into another folder (--out), or delete the manifest to pack anew",
            )
        if self.batches < steps:
            raise ConfigError(
                f"the pack manifest holds {self.batches} global batches, and {steps} are needed", where=str(self.path)
            )


def refuse_format_1(path: Path) -> Path:
    """`path`; raises InputError when a manifest of format 1, a Parquet file, stands in its place."""
    old = path if path.suffix == ".parquet" else path.with_suffix(".parquet")
    if old.is_file():
        what = f"{old.name} is a pack manifest of format 1, and format {FORMAT} is a folder"
        raise InputError(what, where=str(old), fix=f"delete it; {PACK_ANEW} anew, with other packs for the same seed")
    return path


def _head(path: Path) -> dict[str, Any]:
    refuse_format_1(path)
    try:
        head = json.loads((path / HEAD).read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"no pack manifest at {path}", fix=PACK_ANEW) from None
    except ValueError as error:
        raise InputError(f"not a pack manifest: {error}", where=str(path / HEAD)) from None
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        found = head.get("format") if isinstance(head, dict) else None
        raise InputError(f"a pack manifest of format {found}, not {FORMAT}", where=str(path), fix=PACK_ANEW)
    return head


def _open(path: Path) -> pa.RecordBatchFileReader:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path)))
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise InputError(f"the pack manifest is damaged: {error}", where=str(path), fix="pack anew") from None
