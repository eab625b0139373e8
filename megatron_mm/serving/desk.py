"""Where HTTP and the model meet: work that waits for its batch, and events that go back to who asked."""

from __future__ import annotations

import asyncio
import queue
import sys
import traceback
from collections.abc import Callable, Sequence

from .crew import Crew
from .engine import Engine, Event, Work
from .limits import Limits, Refused

LOOK_SECONDS = 0.5  # between two looks whether to go on; ranks that hear nothing for minutes would give up
FAILED = Refused(500, "the model failed on this request; the server's log says how", code="model_failed")


class Ticket:
    """Work, and who waits for it. Made in the HTTP thread, filled by the model's."""

    def __init__(self, work: Work) -> None:
        self.work, self.gone = work, False
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | Refused] = asyncio.Queue()

    def put(self, event: Event | Refused) -> None:
        """From any thread."""
        if not self._loop.is_closed():  # it is when the server was told twice to stop
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self) -> Event:
        """The next event; raises Refused when the model failed."""
        event = await self._events.get()
        if isinstance(event, Refused):
            raise event
        return event


class Desk:
    """A queue with an end: all that waits when a batch begins goes into it, up to the limit; the rest waits."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: queue.SimpleQueue[Ticket] = queue.SimpleQueue()

    def submit(self, works: Sequence[Work]) -> list[Ticket]:
        """A ticket for each; raises Refused (429) when too many wait already."""
        if self._waiting.qsize() + len(works) > self._limits.waiting:
            what = f"{self._waiting.qsize()} prompts wait already, and at most {self._limits.waiting} may"
            raise Refused(429, what, code="too_many_waiting")
        tickets = [Ticket(work) for work in works]
        for ticket in tickets:
            self._waiting.put(ticket)
        return tickets

    def take(self, seconds: float) -> list[Ticket]:
        """What waits, at most a batch; waits itself up to `seconds` for the first."""
        taken: list[Ticket] = []
        try:
            taken.append(self._waiting.get(timeout=seconds))
            while len(taken) < self._limits.batch:
                taken.append(self._waiting.get_nowait())
        except queue.Empty:
            pass
        return [ticket for ticket in taken if not ticket.gone]


def attend(desk: Desk, engine: Engine, crew: Crew, is_open: Callable[[], bool]) -> None:
    """Rank 0's part: batch after batch, for as long as the server is open. Then the other ranks end, too."""
    while is_open():
        tickets = desk.take(LOOK_SECONDS)
        crew.share([ticket.work for ticket in tickets])
        if tickets:
            _perform(engine, crew, tickets)
    crew.share(None)


def follow(engine: Engine, crew: Crew) -> None:
    """The other ranks' part: the same work, told to nobody."""
    while (works := crew.share(None)) is not None:
        if works:
            engine.perform(works, lambda number, event: None, lambda number: False)


def _perform(engine: Engine, crew: Crew, tickets: Sequence[Ticket]) -> None:
    """What goes wrong costs the batch. Other ranks cannot know of it, so with them it ends the server."""
    try:
        engine.perform(
            [ticket.work for ticket in tickets],
            lambda number, event: tickets[number].put(event),
            lambda number: tickets[number].gone,
        )
    except Exception:  # such as no memory for this batch: the next one may be smaller
        traceback.print_exc(file=sys.stderr)
        for ticket in tickets:
            ticket.put(FAILED)
        if crew.size > 1:
            raise
