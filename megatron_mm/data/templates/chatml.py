"""ChatML as Qwen2 publishes it: `<|im_start|>ROLE\\nCONTENT<|im_end|>\\n` per turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from ..samples import Message
from .base import Piece, Special, Template, Text, with_system

START, END = "<|im_start|>", "<|im_end|>"


class ChatML(Template):
    """Learnt are an assistant's content and its `<|im_end|>`.

    Qwen2-Instruct's template puts a system prompt before a conversation that has none; so does this by default.
    Qwen2.5's says "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.".
    """

    name: Literal["chatml"] = "chatml"
    system: str = "You are a helpful assistant."  # empty for no system turn
    bos: str = ""  # a token before the first turn; Qwen2 has none
    learn_newline: bool = False  # learn the newline after an answer's end as well, as Megatron-LM's NVLM code does

    def pieces(self, messages: Sequence[Message]) -> Iterator[Piece]:
        """See `Template`."""
        system, turns = with_system(messages, self.system)
        yield from [Special(self.bos)] if self.bos else []
        if system:
            yield from self._turn({"role": "system", "content": system})
        for turn in turns:
            yield from self._turn(turn)

    def prompt(self, messages: Sequence[Message]) -> Iterator[Piece]:
        """See `Template`."""
        yield from self.pieces(messages)
        yield from self._opening()

    def special_tokens(self) -> list[str]:
        """See `Template`."""
        return [START, END, *([self.bos] if self.bos else [])]

    def end(self) -> Special:
        """See `Template`."""
        return Special(END, learn=True)

    def _opening(self) -> Iterator[Piece]:
        yield Special(START)
        yield Text("assistant\n")

    def _turn(self, message: Message) -> Iterator[Piece]:
        role, content = message["role"], message["content"]
        if role == "assistant":
            yield from self._opening()
            yield Text(content, learn=True)
            yield self.end()
            yield Text("\n", learn=self.learn_newline)
            return
        yield Special(START)
        yield from self.with_images(content, f"{role}\n") if role == "user" else [Text(f"{role}\n{content}")]
        yield Special(END)
        yield Text("\n")
