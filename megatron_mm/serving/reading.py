"""Bodies of requests, as far as they are taken, and clients that hang up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from .limits import Refused

T = TypeVar("T")
BODY_SECONDS = 60.0  # for a body to arrive: a client that trickles would hold its place for ever


async def read_body(request: Request, most: int) -> bytes:
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


async def unless_gone(request: Request, answer: Awaitable[T]) -> T:
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
