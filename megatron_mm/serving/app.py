"""The HTTP side: routes, keys, limits, and a line in the log for each request."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .answers import ChatAnswer, CompletionAnswer, Count
from .asked import ChatAsked, CompletionAsked, parsed
from .desk import Desk, Ticket
from .door import Door
from .limits import Limits, Refused
from .prompts import Prompts
from .replies import Json

T = TypeVar("T")
Answer = ChatAnswer | CompletionAnswer
BODY_SECONDS = 60.0  # for a body to arrive: a client that trickles would hold its place for ever


class App:
    """The routes over one model called `model`. `door` says who may come in."""

    def __init__(self, prompts: Prompts, desk: Desk, limits: Limits, model: str, positions: int, door: Door) -> None:
        self._prompts, self._desk, self._limits, self._door = prompts, desk, limits, door
        self._model, self._positions, self._created = model, positions, int(time.time())
        self._inside = 0

    def routes(self) -> Starlette:
        """As an ASGI application."""
        return Starlette(
            routes=[
                Route("/health", self.health),
                Route("/v1/models", self.models),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/completions", self.completions, methods=["POST"]),
            ],
            exception_handlers={
                Refused: _refused,
                HTTPException: _unknown,
                ClientDisconnect: _left,
                Exception: _failed,
            },
        )

    async def health(self, request: Request) -> Response:
        """There is an answer only once the model is loaded; it tells a stranger nothing."""
        self._door.check_host(request.headers)
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        """The one model."""
        self._door.check(request.headers)
        about = {"id": self._model, "object": "model", "created": self._created, "owned_by": "megavlm"}
        return JSONResponse({"object": "list", "data": [about | {"max_model_len": self._positions}]})

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""

        def read(body: bytes) -> tuple[Answer, bool]:
            asked = parsed(ChatAsked, body, self._model)
            return ChatAnswer(asked, self._prompts.chat(asked), self._prompts.tokenizer.show), asked.stream

        return await self._answer(request, "chat", read)

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""

        def read(body: bytes) -> tuple[Answer, bool]:
            asked = parsed(CompletionAsked, body, self._model)
            choices = self._prompts.completion(asked)
            return CompletionAnswer(asked, choices, self._prompts.tokenizer.show), asked.stream

        return await self._answer(request, "completion", read)

    async def _answer(self, request: Request, kind: str, read: Callable[[bytes], tuple[Answer, bool]]) -> Response:
        with ExitStack() as stack:
            line = stack.enter_context(_logged(kind))
            self._door.check(request.headers)
            stack.enter_context(self._admitted())
            body = await _body(request, self._limits.body_bytes)
            answer, stream = await asyncio.to_thread(read, body)  # decoding images would hold up everyone else
            line.count = answer.count
            tickets = self._desk.submit(answer.works)
            stack.callback(_leave, tickets)
            if stream:
                return _Held(_events(answer, tickets, line), stack.pop_all())
            return JSONResponse(await _unless_gone(request, answer.whole(tickets)))

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        """A place inside, before any of the body is read; raises Refused (429)."""
        if self._inside >= self._limits.waiting + self._limits.batch:
            raise Refused(429, f"{self._inside} requests are being answered already", code="too_many_waiting")
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1


class _Line:
    """What the log will say of a request: never what was asked, nor what was answered."""

    def __init__(self, kind: str) -> None:
        self.kind, self.status, self.count = kind, "200", Count()
        self._started = time.monotonic()

    def __str__(self) -> str:
        count = self.count
        tokens = f"{count.prompt} + {count.completion} tokens, {count.tiles} tiles"
        end = f" {count.finish}" if count.finish else ""
        now, seconds = time.strftime("%H:%M:%S"), time.monotonic() - self._started
        return f"{now} {self.kind} {self.status} {tokens}{end} {seconds:.2f} s"


@contextmanager
def _logged(kind: str) -> Iterator[_Line]:
    line = _Line(kind)
    try:
        yield line
    except Refused as error:
        line.status = f"{error.status} {error.code or ''}".strip()
        raise
    except ClientDisconnect:
        line.status = "gone"
        raise
    finally:
        print(line, file=sys.stderr, flush=True)


class _Held(StreamingResponse):
    """A stream of server-sent events that gives back what it holds, even when the client never reads it."""

    def __init__(self, events: AsyncIterator[str], held: ExitStack) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._held = held

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with self._held:
            await super().__call__(scope, receive, send)


async def _events(answer: Answer, tickets: list[Ticket], line: _Line) -> AsyncIterator[str]:
    """An event that is an error ends a stream that cannot go on: its status is out already."""
    try:
        async for chunk in answer.chunks(tickets):
            yield f"data: {json.dumps(chunk)}\n\n"
    except Refused as error:
        line.status = str(error.status)
        yield f"data: {json.dumps(error.body())}\n\n"
    yield "data: [DONE]\n\n"


def _leave(tickets: list[Ticket]) -> None:
    """Nobody waits any more; what is done already is not minded."""
    for ticket in tickets:
        ticket.gone = True


async def _body(request: Request, most: int) -> bytes:
    """The whole body; raises Refused for one that is too large, too slow or no JSON."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        # which a foreign web page cannot send to a server on this machine without being asked first
        raise Refused(415, "the body is application/json")
    too_large = Refused(413, f"the body is larger than {most} bytes", code="body_too_large")
    told = request.headers.get("content-length", "0")
    if told.isdecimal() and int(told) > most:
        raise too_large
    read = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for block in request.stream():
                read += block
                if len(read) > most:
                    raise too_large
    except TimeoutError:
        raise Refused(408, f"the body did not arrive within {BODY_SECONDS:g} s") from None
    return bytes(read)


async def _unless_gone(request: Request, answer: Awaitable[T]) -> T:
    """The answer; raises ClientDisconnect when the client hangs up before it is there."""
    working, gone = asyncio.ensure_future(answer), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    extra = {429: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}.get(error.status)
    return JSONResponse(error.body(), error.status, headers=extra)


async def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(_told(error.status_code, f"{error.detail}: {request.url.path[:100]}"), error.status_code)


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # read by nobody


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse(_told(500, "the server failed on this request; its log says how"), 500)


def _told(status: int, message: str) -> Json:
    return Refused(status, message).body()
