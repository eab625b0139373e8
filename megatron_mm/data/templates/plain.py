"""No template: the images, then the caption and a newline, as LLaVA and EVE pretrain connectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

from ..samples import Message
from .base import Image, Piece, Special, Template, Text


class Plain(Template):
    """Learnt are the captions and their newlines. Of the user's turns only images are read, of the system's nothing.

    The newline is a piece of its own, so that it ends generation.
    """

    captions: ClassVar[bool] = True

    name: Literal["plain"] = "plain"
    bos: str = "<s>"  # Llama 2's and Vicuna's; empty for a tokenizer that has none (Qwen2)

    def pieces(self, messages: Sequence[Message]) -> Iterator[Piece]:
        """See `Template`."""
        yield from [Special(self.bos, begins=True)] if self.bos else []
        for message in messages:
            if message["role"] == "user":
                yield from (piece for piece in self.with_images(message["content"]) if isinstance(piece, Image))
            elif message["role"] == "assistant":
                yield Text(message["content"], learn=True)
                yield self.end()

    def prompt(self, messages: Sequence[Message]) -> Iterator[Piece]:
        """See `Template`."""
        return self.pieces(messages)

    def special_tokens(self) -> list[str]:
        """See `Template`."""
        return [self.bos] if self.bos else []

    def end(self) -> Text:
        """See `Template`."""
        return Text("\n", learn=True)
