"""A training sample of a shard: its conversation and its images, or the reason why it cannot be used."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

from megavlm.platform.errors import InputError
from megavlm.platform.shards import Sample

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"})
ROLES = ("system", "user", "assistant")
IMAGE_MARK = "<image>"

Message = dict[str, str]


class BadSample(InputError):
    """One sample that cannot be trained on; `reason` is short and stable, the text says more."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages in order, and the encoded images in the order of their `<image>` marks."""

    messages: list[Message]
    images: list[bytes]


TEXT_FIELDS = frozenset({"json", "txt"})


def read_conversation(sample: Sample) -> Conversation:
    """Parse and check a sample's fields; raises BadSample."""
    names = image_fields(sample.fields)
    return Conversation(read_messages(sample, len(names)), [sample.fields[name] for name in names])


def read_messages(sample: Sample, images: int) -> list[Message]:
    """The messages of a sample that has so many images, which need not be at hand; raises BadSample."""
    messages = _messages(sample.fields.get("json"))
    marks = sum(message["content"].count(IMAGE_MARK) for message in messages if message["role"] == "user")
    if marks != images:
        raise BadSample(
            "image_count", f"{marks} {IMAGE_MARK} mark(s) in the user turns and {images} image(s) beside them"
        )
    return messages


def image_fields(names: Iterable[str]) -> list[str]:
    """Those of a sample's fields that are images, in the order of their marks."""
    return sorted(filter(_is_image, names), key=_image_order)


def _messages(raw: bytes | None) -> list[Message]:
    if raw is None:
        raise BadSample("no_json", "the sample has no json field")
    try:
        document: Any = json.loads(raw)
    except ValueError as error:
        raise BadSample("invalid_json", f"the json field does not parse: {error}") from None
    messages = document.get("messages") if isinstance(document, dict) else None
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        raise BadSample("no_messages", "the json field holds no list `messages` of {role, content} with known roles")
    if not any(message["role"] == "assistant" and message["content"] for message in messages):
        raise BadSample("no_answer", "no assistant turn, so there is nothing to learn")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in ROLES and isinstance(message.get("content"), str)


def _is_image(field: str) -> bool:
    return field.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


def _image_order(field: str) -> tuple[int, str]:
    """`2.jpg` before `10.jpg`."""
    head = field.partition(".")[0]
    return (int(head) if head.isdigit() else 0, field)
