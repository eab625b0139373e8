"""What every engine can: say how likely a text is, and answer. Loads no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from ...data.samples import Message


@dataclasses.dataclass(frozen=True)
class Ask:
    """A question to be answered greedily.

    `messages` are turns of role and content; <image> in a user's content marks the place of one of `images` (their
    bytes, in order). A last turn of the assistant's is the beginning of the answer, which goes on from it and is told
    without it. `stop`: texts that end the answer and are no part of it, beside the template's own end. `prompt`: raw
    text in place of the messages, without a template; one that is too long loses its beginning.
    """

    messages: tuple[Message, ...]
    images: tuple[bytes, ...] = ()
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 64
    prompt: str | None = None


class Unanswered(str):
    """What `generate` gives for a question that could not be asked: an empty answer that knows why.

    One such question, an unreadable image for instance, costs no other one.
    """

    problem: str

    def __new__(cls, problem: str) -> Unanswered:
        """`problem` is the reason."""
        found = super().__new__(cls, "")
        found.problem = problem
        return found

    def __getnewargs__(self) -> tuple[str]:
        """Between processes it stays what it is."""
        return (self.problem,)


class Engine(Protocol):
    """A model that benchmarks can be asked of. One process calls it."""

    name: str
    max_length: int  # tokens that fit into the model
    start: tuple[int, ...]  # what the tokenizer puts before a whole text: Llama's <s>; Qwen2's puts nothing
    prefix: int  # the token that a text stands after where there is nothing before it

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text: no special token is added, and none can be spelt."""

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation without images up to where the next answer begins.

        A last turn of the assistant's is the beginning of that answer: the ids end with it. Raises InputError for a
        conversation that cannot be written.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""

    def log_likelihoods(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """For each (context ids, continuation ids): the continuation's log-probability, and whether it is greedy's.

        A context that is too long loses its beginning.
        """

    def generate(self, asks: Sequence[Ask]) -> list[str]:
        """The answers, in order, without what ended them; Unanswered where one could not be asked."""

    def close(self) -> None:
        """Let go of the model."""
