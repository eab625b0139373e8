"""The HTTP side: routes, and what holds for all of them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .answers import ChatAnswer, CompletionAnswer
from .asked import ChatAsked, CompletionAsked, parsed
from .desk import Desk, Ticket
from .door import Door
from .limits import Limits, Refused
from .lines import Line, logged
from .prompts import Prompts
from .reading import read_body, unless_gone
from .replies import Json

Answer = ChatAnswer | CompletionAnswer


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
            line = stack.enter_context(logged(kind))
            self._door.check(request.headers)
            stack.enter_context(self._admitted())
            body = await read_body(request, self._limits.body_bytes)
            answer, stream = await asyncio.to_thread(read, body)  # decoding images would hold up everyone else
            line.count = answer.count
            tickets = self._desk.submit(answer.works)
            stack.callback(_leave, tickets)
            if stream:
                return _Held(_events(answer, tickets, line), stack.pop_all())
            return JSONResponse(await unless_gone(request, answer.whole(tickets)))

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


class _Held(StreamingResponse):
    """A stream of server-sent events that gives back what it holds, even when the client never reads it."""

    def __init__(self, events: AsyncIterator[str], held: ExitStack) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._held = held

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with self._held:
            await super().__call__(scope, receive, send)


async def _events(answer: Answer, tickets: list[Ticket], line: Line) -> AsyncIterator[str]:
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
