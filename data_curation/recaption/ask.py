"""Asking endpoints: many questions at once, but never more than agreed, each as often as it takes and no more."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx2

from megavlm.platform.errors import ConfigError, MegaVLMError

from .endpoint import Secret, Trouble, body, request
from .pool import NoEndpoint, Place, Pool
from .reply import Answer, Failure, Keep, Question, Reply

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
    """Asks OpenAI-compatible endpoints, each shard with connections of its own."""

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

    def identity(self) -> dict[str, Any]:
        """Endpoints that serve one model are taken to say the same."""
        return {}

    def answers(self, questions: Iterator[Question], keep: Keep) -> dict[str, Answer]:
        """See Captioner. Raises ConfigError when the endpoint refuses us, MegaVLMError when there is none."""
        answers: dict[str, Answer] = {}
        try:
            asyncio.run(self._answer_all(_Source(questions), keep, answers))
        except BaseExceptionGroup as group:
            error = _first(group)
            self._gave_up = isinstance(error, NoEndpoint)  # the next shard looks once and does not wait again
            if self._gave_up:
                self.close()
            raise error from None
        return answers

    def close(self) -> None:
        """End the servers, if they are ours."""
        self._end()

    async def _answer_all(self, source: _Source, keep: Keep, answers: dict[str, Answer]) -> None:
        pool = Pool(self.places, self.manners.health, 0.0 if self._gave_up else self.manners.patience_seconds)
        first = await source.next()
        if first is None:  # a shard that is all in the cache starts no server and asks nobody
            return
        source.put_back(first)
        async with self._client() as client, asyncio.TaskGroup() as outer:
            watch = outer.create_task(pool.watch(client, self.secret.hide))
            async with asyncio.TaskGroup() as inner:
                for _ in range(self.manners.concurrency):
                    inner.create_task(self._work(source, pool, client, keep, answers))
            watch.cancel()

    def _client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            headers=self.secret.headers(),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=self.manners.concurrency),
            timeout=httpx2.Timeout(self.manners.timeout_seconds),
            trust_env=self.manners.proxies,
        )

    async def _work(
        self, source: _Source, pool: Pool, client: httpx2.AsyncClient, keep: Keep, answers: dict[str, Answer]
    ) -> None:
        while (question := await source.next()) is not None:
            answer = await self._ask(question, pool, client)
            if isinstance(answer, Reply):
                keep(question, answer)
            answers[question.key] = answer
            self._count(answer)

    async def _ask(self, question: Question, pool: Pool, client: httpx2.AsyncClient) -> Answer:
        content, asked = body(self.model, self.parameters, question), 0
        while True:
            member = await pool.take()
            outcome = await request(client, member.place.url(), content, self.manners.timeout_seconds)
            if isinstance(outcome, Reply):
                pool.praise(member)
                return Reply(self.secret.hide(outcome.text), outcome.finish, asked + 1)
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
            raise MegaVLMError(what, where="curation.stages.recaption", fix="see the server's log")

    def _refused(self, url: str, trouble: Trouble) -> ConfigError:
        fix = f"check that it serves model '{self.model}' there, and api_key_env (docs/curation.md)"
        return ConfigError(
            f"the endpoint refuses what is asked: {self.secret.hide(trouble.detail)}", where=url, fix=fix
        )


class _Source:
    """Questions for many who ask at once. They are made (read, decoded) in a thread, so that answers are not kept."""

    def __init__(self, questions: Iterator[Question]) -> None:
        self._questions, self._lock = questions, asyncio.Lock()
        self._held: list[Question] = []

    async def next(self) -> Question | None:
        """The next one; None when there are no more."""
        if self._held:
            return self._held.pop()
        async with self._lock:
            return await asyncio.to_thread(next, self._questions, None)

    def put_back(self, question: Question) -> None:
        """For whoever asks next."""
        self._held.append(question)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group of groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
