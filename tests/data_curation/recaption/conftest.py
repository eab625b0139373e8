"""A real inference server with a tiny model, and a proxy before it that drops, delays and answers nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from megavlm.data_curation.recaption.cache import ResponseCache
from megavlm.data_curation.recaption.page import Page, Wanted
from megavlm.data_curation.recaption.question import AboutImage
from megavlm.data_curation.recaption.server import free_port

CANNED = b'{"choices": [{"message": {"role": "assistant", "content": "A dog."}, "finish_reason": "stop"}]}'
NONSENSE = {
    "caption": CANNED,  # no nonsense, but no server's either
    "empty": b'{"id": "x", "object": "chat.completion", "choices": []}',
    "null": b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": null}, "finish_reason": "stop"}]}',
    "blank": b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": " \\n"}}]}',
    "other": b'["choices", 17]',
    "html": b"<html><body>Welcome to our captive portal</body></html>",
}
STATUS = {"500": b"500 Internal Server Error", "429": b"429 Too Many Requests", "503": b"503 Service Unavailable"}
Plan = Callable[[int, bytes], str]  # (how many POSTs came before, the body) -> a fault's name, or "pass"


@dataclasses.dataclass
class Seen:
    """What passed a proxy."""

    questions: Counter[str] = dataclasses.field(default_factory=Counter)  # SHA-256 of a POST's body -> times
    faults: Counter[str] = dataclasses.field(default_factory=Counter)
    keys: set[str] = dataclasses.field(default_factory=set)  # Authorization headers
    answers: list[bytes] = dataclasses.field(default_factory=list)  # bodies that came from behind it, untouched
    looks: int = 0  # GETs, answered by the proxy itself
    open: int = 0
    most_open: int = 0  # POSTs under way at a time


class Proxy:
    """HTTP/1.1 between a client and a server, one request per connection, with a fault where `plan` wants one.

    Without a server (`target` 0) it says that it is well and leaves the answers to `plan`.
    """

    def __init__(self, target: int, plan: Plan) -> None:
        self.target, self.plan, self.seen = target, plan, Seen()
        self.port = 0
        self.health = b"200 OK"  # of a proxy without a server
        self.well_after = 10**9  # looks at its health, from which on it says so
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.listen()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def listen(self) -> None:
        async def start() -> asyncio.Server:
            return await asyncio.start_server(self._serve, "127.0.0.1", self.port)

        self._server = asyncio.run_coroutine_threadsafe(start(), self._loop).result(5)
        self.port = self._server.sockets[0].getsockname()[1]

    def hang_up(self) -> None:
        """Nobody listens any more; whoever connects is refused. May be called from anywhere, a plan included."""
        assert self._server is not None
        if threading.current_thread() is self._thread:  # a plan: gone before the answer is out
            self._server.close()
        else:
            self._loop.call_soon_threadsafe(self._server.close)

    def end(self) -> None:
        self.hang_up()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
            headers = {name.lower(): value for name, value in fields.items()}
            body = await reader.readexactly(int(headers.get(b"content-length", b"0")))
            self.seen.keys.add(headers.get(b"authorization", b"").decode())
            if head.startswith(b"POST"):
                await self._post(head, body, reader, writer)
            else:
                writer.write(await self._forward(head, body))
                await writer.drain()
        writer.close()

    async def _post(self, head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen = self.seen
        fault = self.plan(sum(seen.questions.values()), body)
        seen.questions[hashlib.sha256(body).hexdigest()] += 1
        seen.faults[fault] += 1
        seen.open += 1
        seen.most_open = max(seen.most_open, seen.open)
        try:
            if fault == "never":
                await reader.read()  # until the client has had enough
            else:
                await self._answer(fault, head, body, writer)
        finally:
            seen.open -= 1

    async def _answer(self, fault: str, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        if fault == "drop":
            writer.transport.abort()  # a reset, not an orderly end
        elif fault.startswith("slow"):  # "slow", or with seconds: "slow-0.3"
            await asyncio.sleep(float(fault[5:] or 0.1))
            writer.write(response(b"200 OK", CANNED))
        elif fault.startswith("after"):  # "after-20": once that many questions have come, or never
            while sum(self.seen.questions.values()) < int(fault[6:]):
                await asyncio.sleep(0.01)
            writer.write(response(b"200 OK", CANNED))
        elif fault in NONSENSE:
            writer.write(response(b"200 OK", NONSENSE[fault]))
        elif fault in STATUS or fault.isdigit():
            writer.write(response(STATUS.get(fault, fault.encode() + b" No"), b"go away, " + self._key(head)))
        else:
            answer = await self._forward(head, body)
            start, _, text = answer.partition(b"\r\n\r\n")
            self.seen.answers.append(text)
            if fault == "truncated":  # well-framed HTTP around half a JSON document
                answer = response(b"200 OK", text[: len(text) // 2])
            writer.write(answer if fault != "torn" else start + b"\r\n\r\n" + text[: len(text) // 2])
            await writer.drain()

    @staticmethod
    def _key(head: bytes) -> bytes:
        """Servers do repeat what they were sent."""
        return next((line for line in head.split(b"\r\n") if line.lower().startswith(b"authorization")), b"")

    async def _forward(self, head: bytes, body: bytes) -> bytes:
        if not self.target:
            self.seen.looks += 1
            if self.seen.looks >= self.well_after:
                self.health = b"200 OK"
            return response(self.health, b"{}")
        reader, writer = await asyncio.open_connection("127.0.0.1", self.target)
        try:
            lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
            writer.write(b"\r\n".join([lines[0], b"Connection: close", *lines[1:]]) + body)
            await writer.drain()
            answer = await reader.read()
        finally:
            writer.close()
        start, _, text = answer.partition(b"\r\n\r\n")
        return start.replace(b"keep-alive", b"close") + b"\r\n\r\n" + text


def response(status: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\nretry-after: 0\r\nconnection: close\r\n" % status
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


@dataclasses.dataclass(frozen=True)
class TinyServer:
    model: str  # a folder
    port: int

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """What the server says, asked with the standard library."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/chat/completions", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())["choices"][0]


@pytest.fixture(scope="session")
def tiny_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyServer]:
    """`transformers serve` with a tiny random vision-language model."""
    folder, port = tmp_path_factory.mktemp("tiny"), free_port()
    script = Path(__file__).parent / "serve_tiny.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (folder / "server.log").open("w") as log:
        command = [sys.executable, str(script), str(folder / "model"), str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        until_healthy(port, process, folder / "server.log")
        yield TinyServer(str(folder / "model"), port)
    finally:
        process.kill()
        process.wait()


def until_healthy(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return
        time.sleep(0.1)
    raise AssertionError(f"the server did not come up:\n{log.read_text()[-2000:]}")


def wanted(count: int, first: int = 0) -> Iterator[Wanted[AboutImage]]:
    for number in range(first, first + count):
        key = f"{number:064x}"
        yield Wanted(f"{number:03d}", key, partial(AboutImage, key, b"image", "image/png", f"question {number}."))


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., Page[AboutImage]]:
    """page(count, first=0) -> that many questions, 000 and so on; or page(wanted). Each with a cache of its own."""

    def make(what: int | Iterator[Wanted[AboutImage]], first: int = 0) -> Page[AboutImage]:
        questions = wanted(what, first) if isinstance(what, int) else what
        return Page(f"page-{first}", questions, ResponseCache(tmp_path / "caches" / uuid.uuid4().hex))

    return make


@pytest.fixture
def endpoint() -> Iterator[Callable[[Plan], Proxy]]:
    """endpoint(plan) -> a Proxy with nothing behind it."""
    made: list[Proxy] = []

    def make(plan: Plan = lambda count, body: "caption") -> Proxy:
        made.append(Proxy(0, plan))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture
def proxy(tiny_server: TinyServer) -> Iterator[Callable[[Plan], Proxy]]:
    """proxy(plan) -> a Proxy before the tiny server."""
    made: list[Proxy] = []

    def make(plan: Plan = lambda count, body: "pass") -> Proxy:
        made.append(Proxy(tiny_server.port, plan))
        return made[-1]

    yield make
    for one in made:
        one.end()
