"""A chat request's messages as the data room's, with their images' bytes. Loads no torch.

Images come inside the request, as data: URLs. No other URL is opened: it would be the client who chooses what this
machine asks of its network or reads from its disk (server-side request forgery).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from megavlm.platform.errors import InputError
from megavlm.platform.images import probe

from ..data.samples import IMAGE_MARK, ROLES, Message
from .limits import Limits, Refused

DATA_URL = re.compile(r"data:image/[\w.+-]+(;[\w.+-]+=[\w.+-]+)*;base64,", re.ASCII)
SHOWN = 40  # characters of a client's text that an error repeats


def read_messages(said: Sequence[Mapping[str, Any]]) -> tuple[list[Message], list[bytes]]:
    """Messages with a mark where each image stands, and the images; raises Refused, naming the message.

    They are perhaps a system message, then user and assistant in turns, the user last. A content is a text or a list
    of parts; texts side by side are lines, an image stands where its part does.
    """
    images: list[bytes] = []
    messages = [_message(message, f"messages.{number}", images) for number, message in enumerate(said)]
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if not turns or turns != (["user", "assistant"] * len(turns))[: len(turns)] or turns[-1] != "user":
        what = "messages are perhaps a system message, then user and assistant in turns, the user last"
        raise Refused(400, f"{what}; these are: {', '.join(roles)[:200]}", param="messages")
    return messages, images


def check_images(images: Iterable[bytes], limits: Limits) -> None:
    """Raise Refused for what is no image, and for more pixels than the server decodes; only headers are read."""
    left = limits.image_pixels
    for number, data in enumerate(images):
        try:
            info = probe(data, max_pixels=max(left, 1))
        except InputError as error:
            code = f"image_{getattr(error, 'reason', 'unreadable')}"
            raise Refused(400, f"image {number}: {error.what}", code=code, param="messages") from None
        left -= info.width * info.height


def _message(said: Mapping[str, Any], where: str, images: list[bytes]) -> Message:
    role, content = said.get("role"), said.get("content")
    unknown = set(said) - {"role", "content", "name"}
    if role not in ROLES or unknown:
        what = f"no field '{min(unknown)[:SHOWN]}'" if unknown else f"role is one of {', '.join(ROLES)}"
        raise Refused(400, f"{where}: {what}", param=where)
    text = _text(content, where) if isinstance(content, str) else _parts(content, role, where, images)
    if not text.strip() and role != "system":
        raise Refused(400, f"{where}: empty", param=where)
    return {"role": role, "content": text}


def _parts(content: Any, role: str, where: str, images: list[bytes]) -> str:
    if not isinstance(content, list):
        raise Refused(400, f"{where}.content: a text or a list of parts", param=where)
    written: list[str] = []
    for number, part in enumerate(content):
        here = f"{where}.content.{number}"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            text = _text(part.get("text"), here)
            written.append("\n" + text if written and written[-1] != IMAGE_MARK else text)
        elif kind == "image_url" and role == "user":
            images.append(_image(part.get("image_url"), here))
            written.append(IMAGE_MARK)
        else:
            raise Refused(400, f"{here}: a part is a text, or in a user's message an image_url", param=here)
    return "".join(written)


def _text(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise Refused(400, f"{where}: no text", param=where)
    if IMAGE_MARK in text:
        raise Refused(400, f"{where}: a text cannot hold {IMAGE_MARK}; give the image as a part", param=where)
    return text


def _image(said: Any, where: str) -> bytes:
    url = said.get("url") if isinstance(said, dict) else None
    head = DATA_URL.match(url) if isinstance(url, str) else None
    if not isinstance(url, str) or head is None:
        shown = f"'{url[:SHOWN]}'" if isinstance(url, str) else "no url"
        what = f"{where}: images come as data:image/...;base64,... URLs, and no other is opened; got {shown}"
        raise Refused(400, what, code="image_url_refused", param=where)
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise Refused(400, f"{where}: no base64", code="image_unreadable", param=where) from None
