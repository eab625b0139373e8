"""Finding samples in an export and taking them out, shard by shard.

A shard's tar is replaced first, then its index, its provenance last. So whatever is killed, provenance still names
what has to go, and the next sweep takes it out; doing it twice changes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from megavlm.platform.errors import InputError
from megavlm.platform.shards import rewrite_without

from ..export.layout import provenance_path, shard_names, sweep_leftovers, tar_path
from ..export.provenance import write_provenance
from .blocklist import KINDS, Blocklist

NAMES = ("key", "source_shard", *KINDS[1:])


@dataclasses.dataclass(frozen=True)
class Concerned:
    """A shard with samples that have to go: their rows of provenance, the columns NAMES of it."""

    name: str
    rows: list[dict[str, Any]]

    def hits(self, ids: Collection[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """(id, kind, row) for every row that an id names; the kind is the first column that fits."""
        for row in self.rows:
            kinds = {row[kind]: kind for kind in reversed(KINDS) if row.get(kind) in ids}
            yield from ((found, kind, row) for found, kind in kinds.items())


def concerned(export: Path, blocked: Blocklist) -> Iterator[Concerned]:
    """The shards that hold something blocked. Reads a few columns of every provenance file, and no shard."""
    for name in shard_names(export):
        file = pq.ParquetFile(provenance_path(export, name))
        table = file.read(columns=[column for column in NAMES if column in file.schema_arrow.names])
        if rows := blocked.blocked(table).to_pylist():
            yield Concerned(name, rows)


def sweep(export: Path, blocked: Blocklist) -> list[str]:
    """Take everything blocked out of an export; returns the names of the shards that changed."""
    sweep_leftovers(export)
    return [take_out(export, shard) for shard in concerned(export, blocked)]


def take_out(export: Path, shard: Concerned) -> str:
    """Rewrite one shard, its index and its provenance; all three go when no sample is left. Returns its name."""
    place = provenance_path(export, shard.name)
    gone = {row["key"] for row in shard.rows}
    rows = pq.read_table(place)
    left = rows.filter(pc.invert(pc.is_in(rows["key"], value_set=pa.array(sorted(gone), pa.string()))))
    written = rewrite_without(tar_path(export, shard.name), gone)
    if (written.samples if written else 0) != len(left):
        what = f"shard {shard.name} holds {written.samples if written else 0} other samples, its provenance {len(left)}"
        raise InputError(what, where=str(place), fix="the shard is damaged: export it again, or bring it back")
    if written is None:
        place.unlink()
    else:
        write_provenance(export, written, left)
    return shard.name
