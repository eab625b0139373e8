"""What a model is asked: the messages of a chat completion (platform.openai.com/docs/api-reference/chat)."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Question:
    """`key` is its address in the response cache."""

    key: str

    def messages(self) -> Sequence[Message]:
        """As they are sent; made anew with each call, so that nobody keeps an image in two forms."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class AboutImage(Question):
    """One image and the words that go with it."""

    image: bytes  # encoded, as it is sent
    mime: str  # image/jpeg, image/png, image/webp
    text: str

    def messages(self) -> list[Message]:
        """One turn: the image as a data URI (RFC 2397), then the words."""
        url = f"data:{self.mime};base64,{base64.b64encode(self.image).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": self.text}]
        return [{"role": "user", "content": content}]


@dataclasses.dataclass(frozen=True)
class Conversation(Question):
    """Turns that lack the answer to the last one."""

    turns: Sequence[Message]

    def messages(self) -> Sequence[Message]:
        """The turns."""
        return self.turns
