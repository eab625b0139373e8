"""What goes into an OpenAI request, and what stands in its answer. Loads no torch."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.images import probe

from ...data.samples import IMAGE_MARK, Message


def content(message: Message, images: Iterator[bytes]) -> Any:
    """A text, or its parts where images stand in it."""
    text = message["content"]
    if message["role"] != "user" or IMAGE_MARK not in text:
        return text
    parts: list[dict[str, Any]] = []
    for number, piece in enumerate(text.split(IMAGE_MARK)):
        if number:
            parts.append({"type": "image_url", "image_url": {"url": _data_url(next(images))}})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _data_url(image: bytes) -> str:
    """Raises InputError for what is no image."""
    kind = probe(image).format.lower()
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def choices_of(told: Any, count: int) -> list[dict[str, Any]]:
    """The choices of a completion, one for each of its prompts in their order; raises ConfigError for other answers."""
    try:
        choices = sorted(told["choices"], key=lambda choice: choice["index"])
    except (LookupError, TypeError):
        choices = []
    if len(choices) != count:
        what = f"the endpoint answers {count} prompts with {len(choices)} choices"
        raise ConfigError(what, fix="evaluate with another engine")
    return choices


def rows_of(choice: dict[str, Any], length: int, count: int) -> list[tuple[float, float]]:
    """(log-probability, 1.0 where none is likelier) of the last `count` of a prompt's `length` tokens."""
    told = choice.get("logprobs") or {}
    own, top = told.get("token_logprobs"), told.get("top_logprobs")
    if not own or not top or len(own) < length or len(top) < length:
        raise ConfigError("the endpoint echoes a prompt without log-probabilities", fix="evaluate with another engine")
    pairs = zip(own[length - count : length], top[length - count : length], strict=True)
    return [(logprob, float(logprob >= max(likeliest.values()))) for logprob, likeliest in pairs]


def text_of(told: Any, raw: bool) -> str:
    """The text of a completion (`raw`) or a chat completion; raises InputError for an answer without one."""
    try:
        choice = told["choices"][0]
        return str((choice["text"] if raw else choice["message"]["content"]) or "")
    except (LookupError, TypeError):
        raise InputError(f"an answer without a text: {str(told)[:200]}", fix="see the server's log") from None
