"""From events to bodies: a chat's or a completion's answer, whole or streamed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

from .asked import ChatAsked, CompletionAsked
from .desk import Ticket
from .engine import Generation, Piece, Work
from .prompts import Choice
from .replies import Envelope, Json, Show, Told, chat_logprobs, text_logprobs, usage


@dataclass
class Count:
    """Tokens and tiles of a request, for its usage and its line in the log."""

    prompt: int = 0
    tiles: int = 0
    completion: int = 0
    finish: str | None = None

    @property
    def usage(self) -> Json:
        """As the API tells it."""
        return usage(self.prompt, self.completion)


async def pieces(ticket: Ticket, count: Count) -> AsyncIterator[Piece]:
    """A generation's, to its end."""
    while True:
        piece = await ticket.next()
        assert isinstance(piece, Piece)
        count.completion, count.finish = count.completion + 1, piece.finish
        yield piece
        if piece.finish is not None:
            return


class ChatAnswer:
    """POST /v1/chat/completions: one choice."""

    def __init__(self, asked: ChatAsked, work: Generation, show: Show) -> None:
        self._asked, self._show = asked, show
        self._envelope = Envelope("chat.completion", asked.model)
        self.works: list[Work] = [work]
        self.count = Count(work.ask.prompt.length, len(work.ask.prompt.tiles))

    async def whole(self, tickets: Sequence[Ticket]) -> Json:
        """The body of an answer that is not streamed."""
        told = Told([piece async for piece in pieces(tickets[0], self.count)])
        message = {"role": "assistant", "content": told.text, "refusal": None}
        choice = {"index": 0, "message": message, **self._logprobs(told), "finish_reason": told.finish}
        return self._envelope.whole([choice], self.count.usage)

    async def chunks(self, tickets: Sequence[Ticket]) -> AsyncIterator[Json]:
        """Bodies of the events of a stream."""
        yield self._chunk({"role": "assistant", "content": ""}, Told())
        async for piece in pieces(tickets[0], self.count):
            yield self._chunk({"content": piece.text}, Told([piece]))
        if self._asked.usage_wanted:
            yield self._envelope.chunk([], self.count.usage)

    def _chunk(self, delta: Json, told: Told) -> Json:
        choice = {"index": 0, "delta": delta, **self._logprobs(told), "finish_reason": told.finish}
        return self._envelope.chunk([choice])

    def _logprobs(self, told: Told) -> Json:
        return {"logprobs": chat_logprobs(told.likely, self._show) if self._asked.logprobs and told.pieces else None}


class CompletionAnswer:
    """POST /v1/completions: a choice for each prompt, streamed one after the other."""

    def __init__(self, asked: CompletionAsked, choices: Sequence[Choice], show: Show) -> None:
        self._asked, self._choices, self._show = asked, choices, show
        self._envelope = Envelope("text_completion", asked.model)
        each = ((choice.scoring, choice.generation) for choice in choices)
        self.works: list[Work] = [work for pair in each for work in pair if work is not None]
        self.count = Count(sum(len(choice.ids) for choice in choices))

    async def whole(self, tickets: Sequence[Ticket]) -> Json:
        """The body of an answer that is not streamed."""
        left = iter(tickets)
        bodies = []
        for number, choice in enumerate(self._choices):
            start = await self._echo(number, choice, left)
            told = Told()
            if choice.generation is not None:
                told.pieces += [piece async for piece in pieces(next(left), self.count)]
            rest = self._body(number, told, self._length(choice))
            bodies.append(joined(start, rest) if told.pieces else start)
        return self._envelope.whole(bodies, self.count.usage)

    async def chunks(self, tickets: Sequence[Ticket]) -> AsyncIterator[Json]:
        """Bodies of the events of a stream."""
        left = iter(tickets)
        for number, choice in enumerate(self._choices):
            if self._asked.echo:
                yield self._envelope.chunk([await self._echo(number, choice, left)])
            at = self._length(choice)
            if choice.generation is not None:
                async for piece in pieces(next(left), self.count):
                    yield self._envelope.chunk([self._body(number, Told([piece]), at)])
                    at += len(self._show([piece.likely.token]))
        if self._asked.usage_wanted:
            yield self._envelope.chunk([], self.count.usage)

    async def _echo(self, number: int, choice: Choice, left: Iterator[Ticket]) -> Json:
        """What a choice begins with: its prompt where that is wanted, else nothing."""
        body: Json = {"index": number, "text": "", "logprobs": None, "finish_reason": None}
        if self._asked.echo:
            body |= {"text": choice.text, "finish_reason": None if self._asked.max_tokens else "length"}
        if choice.scoring is not None:
            likely = await next(left).next()
            assert isinstance(likely, list)
            body["logprobs"] = text_logprobs(choice.ids[:1], likely, self._show)
        return body

    def _length(self, choice: Choice) -> int:
        """Characters of an echoed prompt's tokens."""
        return sum(len(self._show([token])) for token in choice.ids) if self._asked.echo else 0

    def _body(self, number: int, told: Told, at: int) -> Json:
        wanted = self._asked.logprobs is not None
        logprobs = text_logprobs([], told.likely, self._show, at) if wanted else None
        return {"index": number, "text": told.text, "logprobs": logprobs, "finish_reason": told.finish}


def joined(start: Json, rest: Json) -> Json:
    """A choice whose beginning, an echo, and rest were told apart."""
    logprobs = rest["logprobs"]
    if start["logprobs"] is not None:
        logprobs = {key: start["logprobs"][key] + value for key, value in logprobs.items()}
    return {**rest, "text": start["text"] + rest["text"], "logprobs": logprobs}
