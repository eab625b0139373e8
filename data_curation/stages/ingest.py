"""Ingest: read what img2dataset wrote; every sample that cannot go on is named with its reason."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megavlm.platform.errors import InputError
from megavlm.platform.shards import Sample, scan_tar
from megavlm.platform.storage import open_file

from ..source import Shard, image_field
from .base import ShardStage
from .sidecar import judging_schema

if TYPE_CHECKING:
    from ..run import CurationRun

SCHEMA = judging_schema(
    caption=pa.string(),
    metadata=pa.string(),  # the sample's JSON object, as text
)
Row = dict[str, Any]


class Ingest(ShardStage):
    """{shard}.tar holds the downloads that succeeded, {shard}.parquet all rows, {shard}_stats.json the counts.

    A sample goes on when it has an image, a caption (the .txt member, not blank) and metadata that parse. Rows of the
    Parquet file that have no sample in the tar are listed with img2dataset's own status, or as missing_in_tar.
    """

    def judge(self, run: CurationRun) -> Callable[[str], tuple[pa.Table, dict[str, Any]]]:
        """Reads tars in one pass and keeps no image in memory."""
        shards = {shard.name: shard for shard in run.shards}

        def judge(name: str) -> tuple[pa.Table, dict[str, Any]]:
            shard = shards[name]
            listed, notes = _listed_rows(shard)
            rows = list(_tar_rows(shard, listed))
            seen = {row["key"] for row in rows}
            rows += [_absent(row) for key, row in listed.items() if key not in seen]
            return pa.Table.from_pylist(rows, schema=SCHEMA), notes | _stats_note(shard, rows)

        return judge


def _row(key: str, reason: str | None = None, detail: str | None = None, **fields: Any) -> Row:
    return {"key": key, "keep": reason is None, "reason": reason, "detail": detail, **fields}


def _tar_rows(shard: Shard, listed: dict[str, Row]) -> Iterator[Row]:
    """One row per sample and per damaged place of the tar, in its order."""
    reported: set[tuple[str, str]] = set()
    for item in scan_tar(shard.url):
        if isinstance(item, Sample):
            yield _judge_sample(item, listed.get(item.key, {}))
            continue
        name = item.key or item.name or shard.name
        if (name, item.reason) not in reported:  # a duplicated sample is one case, not one per member
            reported.add((name, item.reason))
            yield _row(name, item.reason, f"member '{item.name}' of {shard.name}.tar")


def _judge_sample(sample: Sample, listed: Row) -> Row:
    caption = sample.fields.get("txt", b"").decode("utf-8", errors="replace").strip()
    metadata, error = _metadata(sample, listed)
    if image_field(sample.fields) is None:
        return _row(sample.key, "missing_image", f"members: {', '.join(sorted(sample.fields))}")
    if error:
        return _row(sample.key, "invalid_json", error)
    if not caption:
        return _row(sample.key, "missing_caption", "no .txt member" if "txt" not in sample.fields else "a blank .txt")
    return _row(sample.key, caption=caption, metadata=metadata)


def _metadata(sample: Sample, listed: Row) -> tuple[str | None, str | None]:
    """The sample's metadata as JSON text (the Parquet row's where the tar holds none), and what is wrong with it."""
    if "json" not in sample.fields:
        return json.dumps(listed, default=str, sort_keys=True), None
    try:
        value = json.loads(sample.fields["json"])
    except ValueError as error:  # covers bytes that are no UTF-8
        return None, str(error)
    if not isinstance(value, dict):
        return None, f"a JSON {type(value).__name__}, not an object"
    return json.dumps(value, sort_keys=True), None


def _absent(row: Row) -> Row:
    status = str(row.get("status") or "success")
    reason = "missing_in_tar" if status == "success" else status
    return _row(str(row["key"]), reason, str(row.get("error_message") or "") or None)


def _listed_rows(shard: Shard) -> tuple[dict[str, Row], dict[str, Any]]:
    """The Parquet file's rows by key; a missing or unreadable file costs a note, not the shard."""
    import pyarrow.parquet as pq

    try:
        with open_file(shard.url.removesuffix(".tar") + ".parquet") as file:
            rows = pq.read_table(io.BytesIO(file.read())).to_pylist()
        return {str(row["key"]): row for row in rows}, {}
    except (InputError, OSError, pa.ArrowException, KeyError) as error:
        return {}, {"parquet": f"{type(error).__name__}: {error}"}


def _stats_note(shard: Shard, rows: list[Row]) -> dict[str, Any]:
    """A note when _stats.json is missing, or counts other successes than the tar gave."""
    try:
        with open_file(shard.url.removesuffix(".tar") + "_stats.json") as file:
            claimed = json.loads(file.read())["successes"]
    except (InputError, OSError, ValueError, KeyError, TypeError) as error:
        return {"stats": f"{type(error).__name__}: {error}"}
    kept = sum(row["keep"] for row in rows)
    return {} if claimed == kept else {"stats": f"_stats.json counts {claimed} successes, {kept} are usable"}
