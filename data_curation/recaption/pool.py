"""Several endpoints taken in turn, and who of them is well: a sick one rests until its health URL answers again."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Protocol
from urllib.parse import urljoin

import httpx2

from megavlm.platform.errors import ConfigError, MegaVLMError

from .endpoint import Trouble

SUSPECT = 3  # failures in a row after which an endpoint has to show that it lives
SHORTEST_REST, LONGEST_REST = 0.05, 5.0  # seconds between two looks at a sick endpoint, doubled each time
LOOK_SECONDS = 10.0  # a look may take


class NoEndpoint(MegaVLMError):
    """Nobody is there to ask, for longer than was agreed to wait."""


class Place(Protocol):
    """Where an endpoint is. A server of our own may have to be started first, and moves when it is started anew."""

    def url(self) -> str:
        """The base URL, such as http://localhost:8000/v1, without a slash at its end."""
        ...

    def revive(self) -> None:
        """See to it that something runs there. Raises MegaVLMError when nothing will any more."""
        ...


@dataclasses.dataclass(frozen=True)
class Remote:
    """Somebody else's server."""

    address: str

    def url(self) -> str:
        """As the recipe names it."""
        return self.address.rstrip("/")

    def revive(self) -> None:
        """Not ours to start."""


@dataclasses.dataclass
class Member:
    """An endpoint of a pool. Unwell at first: it is asked for its health before it is asked for anything else."""

    place: Place
    well: bool = False
    lost: bool = False
    failures: int = 0  # in a row


class Pool:
    """Hands out endpoints in turn. `watch` has to run beside those who take from it."""

    def __init__(self, places: Sequence[Place], health: str, patience: float) -> None:
        self.members = [Member(place) for place in places]
        self.health, self.patience = health, patience
        self._next = 0
        self._changed = asyncio.Event()

    async def take(self) -> Member:
        """The next endpoint that is well, waited for. `watch` ends everything when there will be none."""
        while True:
            for _ in self.members:
                member = self.members[self._next % len(self.members)]
                self._next += 1
                if member.well:
                    return member
            self._changed.clear()
            await self._changed.wait()

    def praise(self, member: Member) -> None:
        """It answered."""
        member.failures = 0

    def blame(self, member: Member, trouble: Trouble) -> None:
        """It failed; after a few times in a row, or at once where nothing was there, it is looked at."""
        member.failures += 1
        if trouble.unreached or member.failures >= SUSPECT:
            member.well = False

    async def watch(self, client: httpx2.AsyncClient, tell: Callable[[str], str]) -> None:
        """Nurse the sick, side by side, for as long as it is let. Raises MegaVLMError when no endpoint is left."""
        async with asyncio.TaskGroup() as group:
            for member in self.members:
                group.create_task(self._nurse(member, client, tell))

    async def _nurse(self, member: Member, client: httpx2.AsyncClient, tell: Callable[[str], str]) -> None:
        sick_since, rest = time.monotonic(), SHORTEST_REST
        while not member.lost:
            await asyncio.sleep(rest)
            trouble = None if member.well else await self._look(member, client)
            if trouble is None:
                sick_since, rest = time.monotonic(), SHORTEST_REST
                self._welcome(member)
                continue
            rest = min(2 * rest, LONGEST_REST)
            if trouble.hopeless or time.monotonic() - sick_since > self.patience:
                self._lose(member, tell(trouble.detail))

    async def _look(self, member: Member, client: httpx2.AsyncClient) -> Trouble | None:
        """None when it is well."""
        try:
            member.place.revive()
            async with asyncio.timeout(LOOK_SECONDS):
                response = await client.get(urljoin(f"{member.place.url()}/", self.health))
        except MegaVLMError as error:
            return Trouble(error.what, hopeless=True)
        except TimeoutError:
            return Trouble(f"no answer within {LOOK_SECONDS:g} s")
        except httpx2.HTTPError as error:
            return Trouble(f"{type(error).__name__}: {error}")
        if response.status_code in (401, 403):
            fix = "asking.api_key_env names the variable that holds the key"
            raise ConfigError(f"HTTP {response.status_code}: a key is wanted", where=member.place.url(), fix=fix)
        # any other answer comes from a server that works: not every one offers such a URL
        return Trouble(f"HTTP {response.status_code}") if response.status_code >= 500 else None

    def _welcome(self, member: Member) -> None:
        if not member.well:
            member.well, member.failures = True, 0
            self._changed.set()

    def _lose(self, member: Member, why: str) -> None:
        member.lost = True
        if all(member.lost for member in self.members):
            raise NoEndpoint(
                f"no endpoint answers: {why}",
                where=", ".join(member.place.url() for member in self.members),
                fix="bring one up and run the same command: what is answered stays in the cache",
            )
