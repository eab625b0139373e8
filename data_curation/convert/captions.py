"""img2dataset's tars (output_format=webdataset): an image, its caption as `txt`, its metadata as `json`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from megavlm.platform.shards import BadMember, Sample, scan_tar

from ..source import image_field
from ..text.sample import BadRow
from .fields import caption_fields
from .images import Images
from .job import Draft, Job, Placed
from .rows import shards_of


def samples(job: Job) -> Iterator[Placed]:
    """The samples of the source's tars; each is read once, from front to back."""
    images, count = Images(None), 0
    for shard, url in shards_of(job.source, lambda name: name.endswith(".tar"), "*.tar"):
        for number, item in enumerate(scan_tar(url)):
            count += 1
            yield Placed(shard, number, {} if count <= job.skip else _content(item, shard, images))


def _content(item: Sample | BadMember, shard: str, images: Images) -> dict[str, Any] | BadRow:
    if isinstance(item, BadMember):
        return BadRow(item.reason, item.name[:300])
    field = image_field(item.fields)
    if field is None or "txt" not in item.fields:
        what = "no image" if field is None else "no txt"
        return BadRow("missing_image" if field is None else "no_caption", f"sample '{item.key}' has {what}")
    origin = {"shard": shard, "key": item.key, "metadata": _metadata(item.fields.get("json"))}
    caption = item.fields["txt"].decode("utf-8", "replace")
    try:
        fields = caption_fields(Draft([], [item.fields[field]], item.key, caption=caption), origin, images)
    except BadRow as error:
        return error
    ext = next(name for name in fields if name not in ("txt", "json"))
    return {field: fields.pop(ext), **fields}  # called as it was


def _metadata(raw: bytes | None) -> Any:
    try:
        return json.loads(raw or b"null", parse_constant=str)
    except (ValueError, RecursionError):
        return None
