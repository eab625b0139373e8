"""NVLM's pretraining format (arXiv 2409.11402, figure 11): no turns, the image, the task's words and the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

from ..samples import IMAGE_MARK, Message
from .base import Image, Piece, Special, Template, Text

END = "<|im_end|>"


class NVLMPretrain(Template):
    """`<Image>TILES</Image> QUESTION ANSWER<|im_end|>`; learnt are the answer, with the space before it, and its end.

    White space around contents is cut, and a system turn is not read.
    """

    captions: ClassVar[bool] = True

    name: Literal["nvlm_pretrain"] = "nvlm_pretrain"
    image_start: str = "<Image>"
    image_end: str = "</Image>"

    def pieces(self, messages: Sequence[Message]) -> Iterator[Piece]:
        """See `Template`."""
        begins = True
        for message in messages:
            if message["role"] == "user":
                yield from self._question(message["content"], begins)
            elif message["role"] == "assistant":
                yield Text(f" {message['content'].strip()}", learn=True)
                yield self.end()
            begins = message["role"] != "user"

    def prompt(self, messages: Sequence[Message]) -> Iterator[Piece]:
        """See `Template`."""
        return self.pieces(messages)

    def special_tokens(self) -> list[str]:
        """See `Template`."""
        return [END]

    def end(self) -> Special:
        """See `Template`."""
        return Special(END, learn=True)

    def _question(self, content: str, begins: bool) -> Iterator[Piece]:
        """Its words, a space before them unless they begin a sample or follow an answer."""
        for number, words in enumerate(content.split(IMAGE_MARK)):
            if number:
                yield Image(self.image_start, self.image_end)
                begins = False
            if words.strip():
                yield Text(words.strip() if begins else f" {words.strip()}")
                begins = False
