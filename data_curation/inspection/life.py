"""A sample's life: its source row, what each stage said of it, and where it lies in the export."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq

from ..export.layout import INDEX
from ..export.place import Place
from ..removal.blocklist import Blocklist, plain_id
from ..run import CurationRun
from .find import Origin, Row, dropped, exported_rows, kinds_of_word


def lives(place: Place, word: str) -> list[dict[str, Any]]:
    """Every sample that a key, URL or SHA-256 names, as JSON with stable keys; hashes come as hexadecimal.

    shard and key (of the source), url, sha256, stages [{stage, keep, reason, ...}], export (shard, key, sample number,
    members with offset and size) or null, removed (id, date, reason) or null.
    """
    found = {(row["source_shard"], row["source_key"]): (name, row) for name, row in exported_rows(place, word)}
    origins: list[Origin] = list(found)
    if place.run is not None and (not found or not _by_content(word)):
        origins += [one for one in dropped(place.run, word) if one not in found]
    blocked = Blocklist.read(place.removed)
    taken = [origin for origin in _taken_down(blocked, word) if origin not in origins]
    return [_life(place, blocked, word, origin, found.get(origin)) for origin in [*origins, *taken]]


def _by_content(word: str) -> bool:
    return kinds_of_word(word)[0] != "key"


def _taken_down(blocked: Blocklist, word: str) -> list[Origin]:
    return [
        (row["shard"], row["key"])
        for line in blocked.lines
        for row in line.get("samples", ())
        if plain_id(word) in (line["id"], row["key"])
    ]


def _life(
    place: Place, blocked: Blocklist, word: str, origin: Origin, exported: tuple[str, Row] | None
) -> dict[str, Any]:
    shard, key = origin
    row = exported[1] if exported else {}
    stages = _from_sidecars(place.run, shard, key) if place.run else _from_provenance(row)
    told = {"shard": shard, "key": key, "url": row.get("url"), "sha256": row.get("sha256"), "stages": stages}
    removed = None if exported else _removed(blocked, word, origin)
    return told | {"export": _place_in_export(place, *exported) if exported else None, "removed": removed}


def _from_sidecars(run: CurationRun, shard: str, key: str) -> list[Row]:
    found = []
    for stage in run.config.stages:
        path = run.sidecar_path(stage.name, shard)
        rows = pq.read_table(path, filters=[("key", "=", key)]).to_pylist() if path.exists() else []
        found += [{"stage": stage.name, **_plain(row)} for row in rows]
    return found


def _from_provenance(row: Row) -> list[Row]:
    stages: dict[str, Row] = {}
    for name, value in row.items():
        stage, dot, column = name.rpartition(".")
        if dot:
            stages.setdefault(stage, {"stage": stage, "key": row["source_key"]})[column] = value
    return [_plain(one) for one in stages.values()]


def _plain(row: Row) -> Row:
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in row.items()}


def _place_in_export(place: Place, name: str, row: Row) -> dict[str, Any]:
    index = pq.read_table(place.export / f"{name}{INDEX}", filters=[("key", "=", row["key"])]).to_pylist()
    members = {one["ext"]: {"offset": one["offset"], "size": one["size"]} for one in index}
    return {"shard": name, "key": row["key"], "sample": row["sample"], "members": members}


def _removed(blocked: Blocklist, word: str, origin: Origin) -> dict[str, Any] | None:
    row = dict(zip(("shard", "key"), origin, strict=True))
    for line in blocked.lines:
        if line["id"] == plain_id(word) or row in line.get("samples", ()):
            return {name: line.get(name) for name in ("id", "date", "reason")}
    return None
