"""Pages in hand, so that whoever is free finds a question: the end of one shard leaves nobody idle."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from .page import Page
from .question import Question

PAGES = 8  # in hand at most: each holds its shard's captions, and the few images that are under way


class Desk:
    """Questions of one page after the other. The next page is opened when all of the last one's are handed out.

    Pages are opened and questions made (read, decoded) in a thread, so that answers are not kept waiting.
    """

    def __init__(self, pages: Iterator[Page[Any]]) -> None:
        self._pages, self._hand = pages, deque[Page[Any]]()  # oldest first
        self._open: Page[Any] | None = None  # the newest, as long as it has questions
        self._over = False  # there are no more to open
        self._held: list[tuple[Page[Any], Question]] = []
        self._lock, self._room, self._stirred = asyncio.Lock(), asyncio.Semaphore(PAGES), asyncio.Event()
        self._thread: asyncio.Future[Any] | None = None

    @property
    def over(self) -> bool:
        """Whether there are no more questions."""
        return self._over and not self._held

    async def next(self) -> tuple[Page[Any], Question] | None:
        """A question and its page; None when there are no more."""
        async with self._lock:
            if self._held:
                return self._held.pop()
            while self._open is not None or not self._over:
                if (page := self._open) is None:
                    await self._room.acquire()
                    await self._in_thread(self._open_next)
                elif (question := await self._in_thread(page.next)) is not None:
                    return page, question
                else:
                    self._open = None
                    self._stirred.set()
        self._stirred.set()
        return None

    def put_back(self, page: Page[Any], question: Question) -> None:
        """For whoever asks next."""
        self._held.append((page, question))

    def stir(self) -> None:
        """A page may be finished."""
        self._stirred.set()

    async def finished(self) -> Page[Any] | None:
        """The oldest page, waited for; None when there are no more."""
        while not (self._hand and self._hand[0].finished):
            if self._over and not self._hand:
                return None
            self._stirred.clear()
            await self._stirred.wait()
        self._room.release()
        return self._hand.popleft()

    async def give_up(self, error: Exception) -> None:
        """Fail the pages in hand, those that are finished apart. Nobody may be asking for questions any more."""
        if self._thread is not None:
            await asyncio.wait({self._thread})  # it may be opening another one
        self._open, self._held = None, []
        for page in self._hand:
            if not page.finished:
                page.fail(error)
        self._stirred.set()

    def _open_next(self) -> None:
        page = next(self._pages, None)
        if page is None:
            self._over = True
        else:
            self._hand.append(page)
            self._open = page

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        """Whoever is cancelled meanwhile leaves the thread to itself; `give_up` waits for it."""
        self._thread = asyncio.ensure_future(asyncio.to_thread(call))
        return await asyncio.shield(self._thread)
