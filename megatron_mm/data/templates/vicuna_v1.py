"""Vicuna v1.1's template, which LLaVA-1.5, EVE, Eagle and MMFuser train with; defined by fschat's `vicuna_v1.1`.

`<s>SYSTEM USER: QUESTION ASSISTANT: ANSWER</s>USER: QUESTION ASSISTANT: ANSWER</s>`
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from ..samples import Message
from .base import Piece, Special, Template, Text, with_system

BEGIN, END = "<s>", "</s>"


class VicunaV1(Template):
    """Learnt are an answer, with the space before it, and its `</s>`; these are the labels of fschat and LLaVA.

    Both learn nothing of a sample whose tokens they count wrongly (an answer that holds "</s>" or "ASSISTANT: "). Here
    nothing is counted, so there is nothing to lose.
    """

    name: Literal["vicuna_v1"] = "vicuna_v1"
    system: str = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )  # empty for none

    def pieces(self, messages: Sequence[Message]) -> Iterator[Piece]:
        """See `Template`."""
        system, turns = with_system(messages, self.system)
        before = f"{system} " if system else ""
        yield Special(BEGIN, begins=True)
        for turn in turns:
            if turn["role"] == "user":
                yield from self.with_images(turn["content"], f"{before}USER: ", " ASSISTANT:")
            else:
                yield Text(f" {turn['content']}", learn=True)
                yield self.end()
            before = ""

    def prompt(self, messages: Sequence[Message]) -> Iterator[Piece]:
        """See `Template`: a question brings the opening of its answer along."""
        return self.pieces(messages)

    def special_tokens(self) -> list[str]:
        """See `Template`."""
        return [BEGIN, END]

    def end(self) -> Special:
        """See `Template`."""
        return Special(END, learn=True)
