"""The manifest, written last: what an export was made with and what every file of it hashes to. It holds no time.

Two runs with the same inputs write the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from megavlm.platform.errors import InputError
from megavlm.platform.storage import Url, exists, join, open_file, write_atomic

from .layout import MANIFEST, STATISTICS, provenance_path, shard_names
from .provenance import shard_facts
from .statistics import COLUMNS, Statistics

FORMAT = 1
HEAD = ("format", "recipe", "seed", "fingerprint", "source", "funnel", "sets")  # what the shards alone do not tell
Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Survey:
    """What the provenance of all shards says: their statistics, and an entry of the manifest for each."""

    statistics: Json
    shards: list[Json]

    @classmethod
    def of(cls, export: Path) -> Survey:
        """Reads the provenance files, one at a time, and no shard: its hash was taken when it was written."""
        statistics, shards = Statistics(), []
        for name in shard_names(export):
            data = provenance_path(export, name).read_bytes()
            file = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False)
            wanted = ["key", "source_key", *COLUMNS]
            table = file.read(
                use_threads=False, columns=[column for column in wanted if column in file.schema_arrow.names]
            )
            statistics.add(table)
            facts = shard_facts(file.schema_arrow, provenance_path(export, name))
            hashed = {"provenance_sha256": hashlib.sha256(data).hexdigest()}
            ranges = {f"{column}_range": _range(table[column]) for column in ("key", "source_key")}
            shards.append({"name": name} | facts | hashed | ranges)
        return cls(statistics.told(), shards)

    @property
    def samples(self) -> dict[str, int]:
        """Shard -> how many samples it holds."""
        return {shard["name"]: shard["samples"] for shard in self.shards}


def describe(export: Path, survey: Survey, head: Mapping[str, Any], removed: Mapping[str, Any]) -> None:
    """Write statistics.json, then manifest.json; `head` holds the keys of HEAD, `removed` is a Blocklist's state."""
    told = dict(survey.statistics)
    if "sets" in head:
        found = told.get("sets", {})
        told["sets"] = {name: {"samples": 0} | found.get(name, {}) | facts for name, facts in head["sets"].items()}
    text = json.dumps(told, indent=2, ensure_ascii=False).encode()
    write_atomic(export / STATISTICS, text)
    manifest = {name: head[name] for name in HEAD if name in head}
    manifest["funnel"] = _without_removed(head["funnel"], told["samples"])
    manifest |= {"removed": dict(removed), "samples": told["samples"]}
    manifest |= {"bytes": sum(shard["bytes"] for shard in survey.shards)}
    manifest |= {"statistics_sha256": hashlib.sha256(text).hexdigest(), "shards": survey.shards}
    write_atomic(export / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode())


def _range(keys: pa.ChunkedArray) -> list[str]:
    """The least and the greatest, in the order of code points: which shard may hold a key is known without a look."""
    ends = pc.min_max(keys).as_py()
    return [ends["min"], ends["max"]]


def _without_removed(funnel: list[Json], samples: int) -> list[Json]:
    """The funnel with the export's own line as the shards are: what was taken down counts as dropped."""
    *before, line = funnel
    lost = line["in"] - samples
    return [*before, line | {"kept": samples, "dropped": {"removed": lost} if lost else {}}]


def read_manifest(export: Url) -> Json | None:
    """The manifest of an export (local or remote), None where there is none; raises InputError for another format."""
    place = join(export, MANIFEST)
    if not exists(place):
        return None
    with open_file(place) as file:
        try:
            found = json.loads(file.read())
        except ValueError:
            found = None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError("this is no manifest of an export, or one of another version", where=place)
    return found
