"""Asking an endpoint for a conversation's last answer, over the client and the cache of recaptioning."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from typing import Any

import httpx2

from ..recaption.ask import EndpointCaptioner
from ..recaption.cache import ResponseCache, address
from ..recaption.pool import Pool
from ..recaption.reply import Answer, Question
from .sample import Message


class EndpointWriter(EndpointCaptioner):
    """Sends a question's messages instead of a picture with words."""

    async def _ask(self, question: Question, pool: Pool, client: httpx2.AsyncClient) -> Answer:
        asker = copy.copy(self)  # many questions are asked at a time, each with messages of its own
        asker.parameters = {**self.parameters, "messages": json.loads(question.text)}
        return await EndpointCaptioner._ask(asker, question, pool, client)


class Refiner:
    """One shard's conversations after the other: from the cache what is there, from the endpoint the rest."""

    def __init__(self, writer: EndpointWriter, cache: ResponseCache) -> None:
        self.writer, self.cache = writer, cache

    def answers(self, conversations: Sequence[tuple[str, list[Message]]]) -> tuple[dict[str, Answer], dict[str, int]]:
        """Sample key -> a new last answer or why there is none, and counts to note. Raises what the client raises."""
        self.cache.refresh()
        addresses = {key: self._address(messages) for key, messages in conversations}
        known: dict[str, Answer] = {
            place: reply for place in addresses.values() if (reply := self.cache.get(place)) is not None
        }
        asked = self.writer.answers(
            self._questions(conversations, addresses, known),
            lambda question, reply: self.cache.put(question.key, reply),
        )
        found = known | asked
        notes = {"asked": len(asked), "not_asked": len(known), "requests": sum(one.attempts for one in asked.values())}
        return {key: found[place] for key, place in addresses.items()}, notes

    def _address(self, messages: Sequence[Message]) -> str:
        decisive: dict[str, Any] = {"model": self.writer.model, "parameters": self.writer.parameters}
        return address(b"", messages=messages[:-1], **decisive, **self.writer.identity())

    @staticmethod
    def _questions(
        conversations: Sequence[tuple[str, list[Message]]], addresses: dict[str, str], known: dict[str, Answer]
    ) -> Iterator[Question]:
        """Two conversations that ask the same are one question."""
        asked = set(known)
        for key, messages in conversations:
            if (place := addresses[key]) not in asked:
                asked.add(place)
                yield Question(place, b"", "image/png", json.dumps(messages[:-1]))
