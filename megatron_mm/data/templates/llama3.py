"""Llama-3-Instruct's template: a header naming the role, a blank line, the content, `<|eot_id|>`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from ..samples import Message
from .base import Piece, Special, Template, Text, with_system

BEGIN, START, STOP, END = "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"


class Llama3(Template):
    """Learnt are an assistant's content and its `<|eot_id|>`. White space around contents is cut, as published."""

    name: Literal["llama3"] = "llama3"
    system: str = ""  # Llama-3-Instruct has none

    def pieces(self, messages: Sequence[Message]) -> Iterator[Piece]:
        """See `Template`."""
        system, turns = with_system(messages, self.system)
        yield Special(BEGIN, begins=True)
        if system:
            yield from self._turn({"role": "system", "content": system})
        for turn in turns:
            yield from self._turn(turn)

    def prompt(self, messages: Sequence[Message]) -> Iterator[Piece]:
        """See `Template`."""
        yield from self.pieces(messages)
        yield from _header("assistant")
        yield Text("\n\n")

    def special_tokens(self) -> list[str]:
        """See `Template`."""
        return [BEGIN, START, STOP, END]

    def end(self) -> Special:
        """See `Template`."""
        return Special(END, learn=True)

    def _turn(self, message: Message) -> Iterator[Piece]:
        role, content = message["role"], message["content"].strip()
        yield from _header(role)
        if role == "assistant":
            yield Text("\n\n")
            yield Text(content, learn=True)
            yield self.end()
            return
        yield from self.with_images(content, "\n\n") if role == "user" else [Text(f"\n\n{content}")]
        yield Special(END)


def _header(role: str) -> Iterator[Piece]:
    yield Special(START)
    yield Text(role)
    yield Special(STOP)
