"""OpenAI's layout: {"messages": [{"role", "content"}]}, a content being text or a list of parts.

Parts: {"type": "text", "text"}, {"type": "image_url", "image_url": {"url"}}, {"type": "image", "image"}. Images may
also stand beside the messages, as `images` or `image`, with `<image>` marks (or parts that name none) for their places.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..text.formats.turns import turns_of, without_last_question
from ..text.sample import BadRow, Row
from .chats import images_of
from .fields import MARK
from .job import Draft, Job, Placed, from_rows
from .rows import text_rows

KINDS = {"text": "text", "input_text": "text", "image_url": "image_url", "input_image": "image_url", "image": "image"}


def samples(job: Job) -> Iterator[Placed]:
    """The rows of the source's files."""
    return from_rows(job, text_rows(job.source), draft)


def draft(row: Row) -> Draft:
    """Parts are joined by line breaks. A last question without an answer is left out. Raises BadRow."""
    entries, images = row.get("messages"), list[Any]()
    if isinstance(entries, list):
        entries = [_flat(entry, images) for entry in entries]
    turns = turns_of({"messages": entries}, "messages", "role", "content")
    beside = images_of(row)
    if images and beside:
        raise BadRow("image_count", "images in the messages and beside them")
    return Draft(without_last_question(turns), images or beside, row.get("id"))


def _flat(entry: Any, images: list[Any]) -> Any:
    """A message with text for content; what its parts refer to is added to `images`."""
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), list):
        return entry
    texts = [_part(part, images, entry.get("role")) for part in entry["content"]]
    return {**entry, "content": "\n".join(texts)}


def _part(part: Any, images: list[Any], role: Any) -> str:
    kind = KINDS.get(str(part.get("type"))) if isinstance(part, dict) else None
    if kind is None:
        raise BadRow("unknown_part", f"a part of the content is {str(part)[:80]}")
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise BadRow("not_a_turn", "a part of type text has no text")
        return part["text"]
    if role != "user":
        raise BadRow("image_in_answer", f"an image in a turn of '{str(role)[:40]}'")
    reference = part.get(kind) or part.get("url") or part.get("path")
    if reference is not None:
        images.append(reference)
    return MARK
