"""Asking endpoints: many questions at once, but never more than agreed, each as often as it takes and no more."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import httpx2

from megavlm.platform.errors import ConfigError, MegaVLMError

from .desk import Desk
from .endpoint import Secret, Trouble, body, request
from .page import Page
from .pool import NoEndpoint, Place, Pool
from .question import Question
from .reply import Answer, Failure, Reply

ENOUGH = 16  # questions that came to nothing, and none that did not: then it is not the questions


@dataclasses.dataclass(frozen=True)
class Manners:
    """How endpoints are asked."""

    concurrency: int  # requests under way at a time, all endpoints together
    attempts: int  # requests for one question
    timeout_seconds: float  # for one request
    backoff_seconds: float  # longest pause after the first failed request; twice that after the second, and so on
    longest_pause: float  # seconds
    patience_seconds: float  # for which nobody may be there
    health: str  # URL reference, relative to the endpoint's base URL
    proxies: bool = True  # whether the environment's HTTP_PROXY and the like hold


class EndpointCaptioner:
    """Asks OpenAI-compatible endpoints."""

    def __init__(
        self,
        places: Sequence[Place],
        model: str,
        parameters: dict[str, Any],
        manners: Manners,
        secret: Secret,
        end: Callable[[], None] = lambda: None,
    ) -> None:
        self.places, self.model, self.parameters, self.manners = places, model, parameters, manners
        self.secret, self._end = secret, end
        self._good = self._bad = 0
        self._gave_up = False

    def answer(self, pages: Iterator[Page[Any]]) -> Generator[Page[Any], None, None]:
        """See Captioner. A page fails with ConfigError when the endpoint refuses us, MegaVLMError when there is none.

        Between two pages nothing is done: whoever takes one should be quick to ask for the next.
        """
        with asyncio.Runner() as runner:
            desk = Desk(pages)
            attending = runner.get_loop().create_task(self._attend(desk))
            while (page := runner.run(_finished(desk, attending))) is not None:
                yield page

    def close(self) -> None:
        """End the servers, if they are ours."""
        self._end()

    async def _attend(self, desk: Desk) -> None:
        """Until there are no more questions. What goes wrong costs the pages in hand; the next ones try again."""
        while not desk.over:
            try:
                await self._answer_all(desk)
            except Exception as group:
                error = _first(group)
                self._gave_up = isinstance(error, NoEndpoint)  # the next one looks once and does not wait again
                if self._gave_up:
                    self.close()
                await desk.give_up(error)

    async def _answer_all(self, desk: Desk) -> None:
        first = await desk.next()
        if first is None:  # where all is in the cache no server is started and nobody asked
            return
        desk.put_back(*first)
        pool = Pool(self.places, self.manners.health, 0.0 if self._gave_up else self.manners.patience_seconds)
        async with self._client() as client, asyncio.TaskGroup() as outer:
            watch = outer.create_task(pool.watch(client, self.secret.hide))
            async with asyncio.TaskGroup() as inner:
                for _ in range(self.manners.concurrency):
                    inner.create_task(self._work(desk, pool, client))
            watch.cancel()

    def _client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            headers=self.secret.headers(),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=self.manners.concurrency),
            timeout=httpx2.Timeout(self.manners.timeout_seconds),
            trust_env=self.manners.proxies,
        )

    async def _work(self, desk: Desk, pool: Pool, client: httpx2.AsyncClient) -> None:
        while (taken := await desk.next()) is not None:
            page, question = taken
            answer = await self._ask(question, pool, client)
            page.put(question, answer)
            desk.stir()
            self._count(answer)

    async def _ask(self, question: Question, pool: Pool, client: httpx2.AsyncClient) -> Answer:
        content, asked = body(self.model, self.parameters, question), 0
        while True:
            member = await pool.take()
            outcome = await request(client, member.place.url(), content, self.manners.timeout_seconds)
            if isinstance(outcome, Reply):
                pool.praise(member)
                return dataclasses.replace(outcome, text=self.secret.hide(outcome.text), attempts=asked + 1)
            if outcome.hopeless:
                raise self._refused(member.place.url(), outcome)
            asked += not outcome.unreached
            if outcome.again:
                pool.blame(member, outcome)
            if not outcome.again or asked >= self.manners.attempts:
                return Failure(self.secret.hide(outcome.detail), asked)
            await asyncio.sleep(self._pause(asked, outcome))

    def _pause(self, asked: int, trouble: Trouble) -> float:
        """Exponential backoff with full jitter, so that many who failed together do not come back together."""
        longest = min(self.manners.longest_pause, self.manners.backoff_seconds * 2 ** max(0, asked - 1))
        return max(random.uniform(0, longest), min(trouble.wait, self.manners.longest_pause))

    def _count(self, answer: Answer) -> None:
        self._good += isinstance(answer, Reply)
        self._bad += isinstance(answer, Failure)
        if isinstance(answer, Failure) and not self._good and self._bad >= ENOUGH:
            what = f"none of the first {self._bad} questions was answered; the last one: {answer.detail}"
            where = ", ".join(place.url() for place in self.places)
            raise MegaVLMError(what, where=where, fix="see the server's log")

    def _refused(self, url: str, trouble: Trouble) -> ConfigError:
        fix = f"check that it serves model '{self.model}' there, and api_key_env (docs/curation.md)"
        return ConfigError(
            f"the endpoint refuses what is asked: {self.secret.hide(trouble.detail)}", where=url, fix=fix
        )


async def _finished(desk: Desk, attending: asyncio.Task[None]) -> Page[Any] | None:
    """The next page that is; raises what ended those who attend to it."""
    page = asyncio.ensure_future(desk.finished())
    await asyncio.wait({page, attending}, return_when=asyncio.FIRST_COMPLETED)
    if attending.done():
        attending.result()
    return await page


def _first(error: Exception) -> Exception:
    """The first error of a group of groups."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
