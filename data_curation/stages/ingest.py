"""Ingest: read what the source holds; every sample that cannot go on is named with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from megavlm.platform.shards import Sample

from ..metadata.downloads import Limits, refuse_shrunk
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
    """A sample goes on when it has an image, a caption (`txt`, not blank) and metadata that parse.

    Rows that the source lists without a sample keep the source's own status as their reason (img2dataset's, for one),
    or are missing_in_tar.
    """

    captions: Literal["required", "optional"] = "required"  # optional: "" where none is, for a recipe that recaptions

    def rounds(self, run: CurationRun) -> Iterable[Sequence[int]]:
        """One, but not before the first shard's images are seen to be as large as they were downloaded."""
        if run.shards:
            first = run.shards[0]
            refuse_shrunk(first, first.source.listed(first)[0].values(), limits(run))
        yield from super().rounds(run)

    def judge(self, run: CurationRun) -> Callable[[str], tuple[pa.Table, dict[str, Any]]]:
        """Reads shards in one pass and keeps no image in memory."""
        shards, wanted = {shard.name: shard for shard in run.shards}, limits(run)

        def judge(name: str) -> tuple[pa.Table, dict[str, Any]]:
            shard = shards[name]
            listed, notes = shard.source.listed(shard)
            refuse_shrunk(shard, listed.values(), wanted)
            rows = list(_sample_rows(shard, listed, self.captions == "required"))
            seen = {row["key"] for row in rows}
            rows += [_absent(row) for key, row in listed.items() if key not in seen]
            notes |= shard.source.notes(shard, sum(row["keep"] for row in rows))
            return pa.Table.from_pylist(rows, schema=SCHEMA), notes

        return judge


def limits(run: CurationRun) -> Limits | None:
    """What the recipe's filter asks of an image's size; None when it has no filter."""
    from .filter import Filter

    found = next((stage for stage in run.config.stages if isinstance(stage, Filter)), None)
    return Limits(found.min_side, found.max_aspect) if found else None


def _row(key: str, reason: str | None = None, detail: str | None = None, **fields: Any) -> Row:
    return {"key": _text(key), "keep": reason is None, "reason": reason, "detail": detail and _text(detail), **fields}


def _text(name: str) -> str:
    """Names of a tar may hold bytes that are no UTF-8, which no sidecar can."""
    return name.encode("utf-8", "backslashreplace").decode()


def _sample_rows(shard: Shard, listed: dict[str, Row], captioned: bool) -> Iterator[Row]:
    """One row per sample and per damaged place of the shard, in its order."""
    reported: set[tuple[str, str]] = set()
    for item in shard.source.read(shard, images=False):
        if isinstance(item, Sample):
            yield _judge_sample(item, listed.get(item.key, {}), captioned)
            continue
        name = item.key or item.name or shard.name
        if (name, item.reason) not in reported:  # a duplicated sample is one case, not one per member
            reported.add((name, item.reason))
            yield _row(name, item.reason, shard.source.describe(item, shard))


def _judge_sample(sample: Sample, listed: Row, captioned: bool) -> Row:
    if _text(sample.key) != sample.key:
        return _row(sample.key, "unsafe_name", "a name that is no UTF-8")
    caption = sample.fields.get("txt", b"").decode("utf-8", errors="replace").strip()
    metadata, error = _metadata(sample, listed)
    if image_field(sample.fields) is None:
        return _row(sample.key, "missing_image", f"members: {', '.join(sorted(sample.fields))}")
    if error:
        return _row(sample.key, "invalid_json", error)
    if captioned and not caption:
        return _row(sample.key, "missing_caption", "no caption" if "txt" not in sample.fields else "a blank caption")
    return _row(sample.key, caption=caption, metadata=metadata)


def _metadata(sample: Sample, listed: Row) -> tuple[str | None, str | None]:
    """The sample's metadata as JSON text (the listed row's where the sample has none), and what is wrong with it."""
    if "json" not in sample.fields:
        return json.dumps(listed, default=str, sort_keys=True), None
    try:
        value = json.loads(sample.fields["json"])
    except (ValueError, RecursionError) as error:  # covers bytes that are no UTF-8
        return None, str(error)
    if not isinstance(value, dict):
        return None, f"a JSON {type(value).__name__}, not an object"
    return json.dumps(value, sort_keys=True), None


def _absent(row: Row) -> Row:
    status = str(row.get("status") or "success")
    reason = "missing_in_tar" if status == "success" else status
    return _row(str(row["key"]), reason, str(row.get("error_message") or "") or None)
