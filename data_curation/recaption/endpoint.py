"""One request to an OpenAI-compatible server: the body that goes out, and what the answer means."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import httpx2

from .question import Question
from .reply import Reply

MOST_BYTES = 8 << 20  # of an answer; a caption is a few thousand
SHOWN = 300  # characters of a server's complaint that are kept
AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # may go better next time
TOKENS = ("prompt_tokens", "completion_tokens")
MOST_TOKENS = 1 << 31  # in one request; more is nonsense
REFUSED = {401, 403, 404}  # key, rights, path or model: every other question would fare the same


@dataclasses.dataclass(frozen=True)
class Trouble:
    """A request that brought no caption.

    `again`: another try may bring one. `unreached`: no server was there, which says nothing about the question.
    `hopeless`: no question to this server can be answered. `wait`: seconds that the server asks to be left alone.
    """

    detail: str
    again: bool = True
    unreached: bool = False
    hopeless: bool = False
    wait: float = 0.0


class Secret:
    """An API key, which is sent and never shown: its repr is no key, and `hide` takes it out of any text."""

    def __init__(self, value: str | None = None) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "Secret(...)" if self._value else "Secret()"

    def headers(self) -> dict[str, str]:
        """The header that carries it."""
        return {"Authorization": f"Bearer {self._value}"} if self._value else {}

    def hide(self, text: str) -> str:
        """`text` without the key: servers repeat it in their complaints."""
        return text.replace(self._value, "[key]") if self._value else text


def body(model: str, parameters: dict[str, Any], question: Question) -> dict[str, Any]:
    """A chat completion request (platform.openai.com/docs/api-reference/chat)."""
    return {"model": model, "messages": question.messages(), **parameters}


async def request(client: httpx2.AsyncClient, url: str, content: dict[str, Any], seconds: float) -> Reply | Trouble:
    """Ask once, for at most `seconds` from connecting to the answer's last byte."""
    try:
        async with asyncio.timeout(seconds), client.stream("POST", f"{url}/chat/completions", json=content) as response:
            return _meaning(response, await _read(response))
    except TimeoutError:
        return Trouble(f"no answer within {seconds:g} s")
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
        return Trouble(_name(error), unreached=True)
    except httpx2.HTTPError as error:
        return Trouble(_name(error))


async def _read(response: httpx2.Response) -> bytes:
    read = bytearray()
    async for block in response.aiter_bytes():
        read += block
        if len(read) > MOST_BYTES:
            break
    return bytes(read)


def _meaning(response: httpx2.Response, data: bytes) -> Reply | Trouble:
    status = response.status_code
    if status == 200:
        return caption_of(data)
    # a server that does not know the key may repeat a part of it, which nothing could recognise
    said = response.reason_phrase if status in (401, 403) else data[:SHOWN].decode(errors="replace")
    refused = status in REFUSED
    return Trouble(f"HTTP {status}: {said}", again=status in AGAIN, hopeless=refused, wait=_retry_after(response))


def caption_of(data: bytes) -> Reply | Trouble:
    """The caption in a chat completion's JSON; Trouble for anything else that a server may send with status 200."""
    if len(data) > MOST_BYTES:
        return Trouble(f"an answer of more than {MOST_BYTES} bytes")
    try:
        told = json.loads(data)
        choice = told["choices"][0]
        text, finish = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Trouble(f"no chat completion: {data[:SHOWN].decode(errors='replace')}")
    if not isinstance(text, str) or not text.strip():
        return Trouble(f"no text in the answer: {data[:SHOWN].decode(errors='replace')}")
    if not text.isascii():
        text = text.encode(errors="replace").decode()  # JSON can carry half a surrogate pair, Parquet cannot
    return Reply(text.strip(), finish if isinstance(finish, str) else None, **_tokens(told))


def _tokens(told: dict[str, Any]) -> dict[str, int]:
    """The server's counts, where it gives any that can be."""
    usage = told.get("usage")
    counts = {name: usage.get(name) for name in TOKENS} if isinstance(usage, dict) else {}
    return {name: count for name, count in counts.items() if type(count) is int and 0 <= count < MOST_TOKENS}


def _retry_after(response: httpx2.Response) -> float:
    """Seconds of the Retry-After header; 0 without one, or where it is a date."""
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else 0.0


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
