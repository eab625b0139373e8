"""A training sample of a shard: its conversation and its images, or the reason why it cannot be used."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

from megavlm.platform.errors import InputError
from megavlm.platform.shards import Sample

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"})
TEXT_FIELDS = frozenset({"json", "txt"})
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


def read_conversation(sample: Sample) -> Conversation:
    """Parse and check a sample's fields; raises BadSample."""
    names = image_fields(sample.fields)
    return Conversation(read_messages(sample, len(names)), [sample.fields[name] for name in names])


def read_messages(sample: Sample, images: int) -> list[Message]:
    """The messages of a sample that has so many images, which need not be at hand; raises BadSample.

    They are perhaps a system turn, then user and assistant in turns, the assistant last. An image with `txt` and no
    messages is a question without words, answered by the caption. Reasons: no_json, invalid_json, no_messages,
    no_caption, unknown_role, empty_turn, invalid_text, no_question, roles_do_not_alternate, no_answer, image_count.
    """
    document = _document(sample.fields.get("json"))
    if images and "txt" in sample.fields and "messages" not in document:
        messages = _caption(sample.fields["txt"])
    elif "json" in sample.fields:
        messages = _messages(document.get("messages"))
    else:
        raise BadSample("no_json", "the sample has no json field, and is no image with its caption")
    marks = sum(message["content"].count(IMAGE_MARK) for message in messages if message["role"] == "user")
    if marks != images:
        raise BadSample(
            "image_count", f"{marks} {IMAGE_MARK} mark(s) in the user turns and {images} image(s) beside them"
        )
    return messages


def image_fields(names: Iterable[str]) -> list[str]:
    """Those of a sample's fields that are images, in the order of their marks."""
    return sorted(filter(_is_image, names), key=_image_order)


def _document(raw: bytes | None) -> dict[str, Any]:
    try:
        document: Any = json.loads(raw or b"{}")
    except (ValueError, RecursionError) as error:
        raise BadSample("invalid_json", f"the json field does not parse: {error}") from None
    return document if isinstance(document, dict) else {}


def _caption(raw: bytes) -> list[Message]:
    caption = raw.decode("utf-8", "replace").strip()
    if not caption:
        raise BadSample("no_caption", "the txt field is empty, and there are no messages")
    return [{"role": "user", "content": IMAGE_MARK}, {"role": "assistant", "content": caption}]


def _messages(found: Any) -> list[Message]:
    if not isinstance(found, list) or not found or not all(map(_is_message, found)):
        raise BadSample("no_messages", "the json field holds no list `messages` of {role, content}")
    messages = [{"role": message["role"], "content": message["content"]} for message in found]
    _check_turns(messages)
    _check_order([message["role"] for message in messages])
    return messages


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def _check_turns(messages: Sequence[Message]) -> None:
    for number, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise BadSample("unknown_role", f"turn {number} is of '{role[:40]}'; known: {', '.join(ROLES)}")
        if not content.strip() and role != "system":
            raise BadSample("empty_turn", f"turn {number} ({role}) is empty")
        try:
            content.encode()
        except UnicodeEncodeError:
            raise BadSample("invalid_text", f"turn {number} ({role}) holds half of a surrogate pair") from None


def _check_order(roles: Sequence[str]) -> None:
    turns = roles[1:] if roles[0] == "system" else roles
    if not turns or turns[0] != "user":
        raise BadSample("no_question", f"the first turn is {turns[0] if turns else 'missing'}, not the user's")
    for number, role in enumerate(turns):
        if role != ("user", "assistant")[number % 2]:
            raise BadSample("roles_do_not_alternate", f"turn {number} is a second one of {role}")
    if turns[-1] != "assistant":
        raise BadSample("no_answer", "the last turn is not the assistant's")


def _is_image(field: str) -> bool:
    return field.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


def _image_order(field: str) -> tuple[int, str]:
    """`2.jpg` before `10.jpg`."""
    head = field.partition(".")[0]
    return (int(head) if head.isdigit() else 0, field)
