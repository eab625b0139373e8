"""The questions of one shard: what the cache knows, what has to be asked, and what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator
from typing import Any, Generic, Protocol, TypeVar

from .cache import ResponseCache
from .question import Question
from .reply import Answer, Failure, Reply

Q = TypeVar("Q", bound=Question)


@dataclasses.dataclass(frozen=True)
class Wanted(Generic[Q]):
    """A sample's question, by its address in the cache; it is made only where the cache has no reply."""

    sample: str
    address: str
    make: Callable[[], Q | Failure]


class Page(Generic[Q]):
    """One at a time calls `next`, in a thread; the answers are put from another one."""

    def __init__(
        self,
        name: str,
        wanted: Iterator[Wanted[Q]],
        cache: ResponseCache,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self._cache, self._told = name, cache, told
        self._wanted = self._with_all_that_is_known(wanted)
        self._addresses: dict[str, str] = {}  # sample -> address
        self._known: dict[str, Answer] = {}  # address -> what the cache says, or why there is no question
        self._asked: dict[str, Answer] = {}  # address -> what came of it
        self._awaited: set[str] = set()
        self._all = False
        self._error: Exception | None = None

    def next(self) -> Q | None:
        """The next question that nobody has answered; None when there is none. What goes wrong, fails the page."""
        try:
            for one in self._wanted:
                self._addresses[one.sample] = one.address
                if (question := self._question(one)) is not None:
                    self._awaited.add(question.key)
                    return question
        except Exception as error:
            self.fail(error)
        self._all = True
        return None

    def _with_all_that_is_known(self, wanted: Iterator[Wanted[Q]]) -> Iterator[Wanted[Q]]:
        self._cache.refresh()  # other workers', and those of the pages before
        yield from wanted

    def _question(self, one: Wanted[Q]) -> Q | None:
        """Two samples that are alike are one question."""
        if one.address in self._known or one.address in self._awaited or one.address in self._asked:
            return None
        known = self._cache.get(one.address) or one.make()
        if isinstance(known, Reply | Failure):
            self._known[one.address] = known
            return None
        return known

    def put(self, question: Question, answer: Answer) -> None:
        """A reply is on disk before anything else is done with it."""
        if isinstance(answer, Reply):
            self._cache.put(question.key, answer)
        self._asked[question.key] = answer
        self._awaited.discard(question.key)
        self._told()

    def fail(self, error: Exception) -> None:
        """There will be no result."""
        self._error = self._error or error

    @property
    def finished(self) -> bool:
        """Whether `answers` has something to say."""
        return self._error is not None or (self._all and not self._awaited)

    def answers(self) -> dict[str, Answer]:
        """Sample -> answer. Raises what went wrong."""
        if self._error is not None:
            raise self._error
        found = self._known | self._asked
        return {sample: found[address] for sample, address in self._addresses.items()}

    def notes(self) -> dict[str, Any]:
        """Counts for the ledger. Tokens are those of all its replies, whenever they were asked for."""
        notes = {"asked": len(self._asked), "known": len(self._known)}
        notes["requests"] = sum(answer.attempts for answer in self._asked.values())
        replies = [answer for answer in (self._known | self._asked).values() if isinstance(answer, Reply)]
        for name in ("prompt_tokens", "completion_tokens"):
            notes[name] = sum(getattr(reply, name) or 0 for reply in replies)
        return notes


class Captioner(Protocol):
    """Answers pages of questions. Made once per worker process, then closed."""

    def answer(self, pages: Iterator[Page[Any]]) -> Generator[Page[Any], None, None]:
        """The same pages in order, each when it is finished; those after it may be under way by then."""
        ...

    def close(self) -> None:
        """End what was started. Called once more, it does nothing."""
        ...
