"""Where a sample is: in the export's provenance, and in the sidecars of its source shard.

A key opens only the provenance files whose range of keys holds it, as the manifest says. A URL or a SHA-256 is looked
for in one column of file after file until the first that has it. In a run, what was not exported is looked for in
rejected.parquet (one file), and only in a run that has not finished, or by URL or SHA-256, in sidecar after sidecar.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..export.layout import provenance_path, shard_names
from ..export.place import Place
from ..removal.blocklist import SHA256, plain_id
from ..run import CurationRun

Row = dict[str, Any]
Origin = tuple[str, str]  # source shard, source key


def kinds_of_word(word: str) -> tuple[str, ...]:
    """The columns of provenance that a word may stand in."""
    if SHA256.fullmatch(word):
        return ("sha256",)
    return ("url",) if re.match(r"[A-Za-z][\w+.-]*://", word) else ("key", "source_key")


def exported_rows(place: Place, word: str) -> Iterator[tuple[str, Row]]:
    """(shard, row of provenance) for what a word names: every sample with that key, the first shard's by content."""
    for kind in kinds_of_word(word):
        found = [(name, row) for name in _candidates(place, kind, word) for row in _rows(place, name, kind, word)]
        yield from found
        if found:
            return


def _candidates(place: Place, kind: str, word: str) -> Iterator[str]:
    manifest = place.manifest()
    if manifest is None:
        yield from shard_names(place.export)
        return
    for shard in manifest["shards"]:
        least, greatest = shard.get(f"{kind}_range", (word, word))
        if least <= word <= greatest:
            yield shard["name"]


def _rows(place: Place, name: str, kind: str, word: str) -> list[Row]:
    path = provenance_path(place.export, name)
    if not path.exists() or kind not in pq.read_schema(path).names:
        return []
    table = pq.read_table(path, columns=[kind])
    places = pc.indices_nonzero(pc.fill_null(pc.equal(table[kind], plain_id(word)), False))
    if not len(places):
        return []
    rows = pq.read_table(path).take(places).to_pylist()
    return [{"sample": number, **row} for number, row in zip(places.to_pylist(), rows, strict=True)]


def dropped(run: CurationRun, word: str) -> list[Origin]:
    """Source rows that a word names in a run's own records."""
    kind = kinds_of_word(word)[0]
    if kind == "sha256":
        return _first(run, "filter", "sha256", word.lower())
    if kind == "url":
        return _first(run, "ingest", "metadata", word)
    rejected = run.folder.path("rejected.parquet")
    if run.folder.finished and rejected.exists():
        rows = pq.read_table(rejected, columns=["shard", "key"], filters=[("key", "=", word)]).to_pylist()
        return sorted({(row["shard"], row["key"]) for row in rows})
    first = next(iter(run.config.stages)).name
    paths = ((shard, run.sidecar_path(first, shard)) for shard in run.plan.names)
    return [
        (shard, word)
        for shard, path in paths
        if path.exists() and pq.read_table(path, columns=["key"], filters=[("key", "=", word)]).num_rows
    ]


def _first(run: CurationRun, stage: str, column: str, word: str) -> list[Origin]:
    """The samples of the first shard whose sidecar holds the word in a column (as a JSON string in metadata)."""
    for shard in run.plan.names:
        path = run.sidecar_path(stage, shard)
        if not path.exists() or column not in pq.read_schema(path).names:
            continue
        table = pq.read_table(path, columns=["key", column])
        mask = pc.match_substring(table[column], f'"{word}"') if column == "metadata" else pc.equal(table[column], word)
        if keys := table.filter(mask)["key"].to_pylist():
            return [(shard, key) for key in keys]
    return []
