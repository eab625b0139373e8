"""What a template is: it writes a conversation as pieces, which `conversation.Chat` turns into token ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import ClassVar

from megavlm.platform.config import Config

from ..samples import IMAGE_MARK, Message


@dataclasses.dataclass(frozen=True)
class Text:
    """Ordinary text, tokenised by itself: what generation begins with must be a piece of its own."""

    text: str
    learn: bool = False


@dataclasses.dataclass(frozen=True)
class Special:
    """One special token by name, written as its id. `begins`: what follows counts as the beginning of a text."""

    token: str
    learn: bool = False
    begins: bool = False


@dataclasses.dataclass(frozen=True)
class Image:
    """The next image of the sample, between two texts."""

    start: str = ""
    end: str = ""


Piece = Text | Special | Image


class Template(Config):
    """Base of every template; its fields are its options. NVLM writes an image as `<Image>`, its tiles, `</Image>`.

    What `prompt` writes of a conversation without its last answer must be how `pieces` begins for the whole of it.
    """

    captions: ClassVar[bool] = False  # an image and what is said of it, no turns

    name: str
    image_start: str = ""  # text before each image, joined with its first tag
    image_end: str = ""  # text behind it

    def pieces(self, messages: Sequence[Message]) -> Iterator[Piece]:
        """Whole turns, as they are trained on: an answer and what ends it are learnt."""
        raise NotImplementedError

    def prompt(self, messages: Sequence[Message]) -> Iterator[Piece]:
        """The same, ending with what stands before an answer."""
        raise NotImplementedError

    def special_tokens(self) -> list[str]:
        """The special tokens that a tokenizer must have."""
        raise NotImplementedError

    def end(self) -> Special | Text:
        """What ends an answer."""
        raise NotImplementedError

    def with_images(self, text: str, before: str = "", after: str = "") -> Iterator[Piece]:
        """A user's text with its `<image>` marks as images, between two texts of the template."""
        parts = text.split(IMAGE_MARK)
        for number, part in enumerate(parts):
            if number:
                yield Image(self.image_start, self.image_end)
            yield Text((before if number == 0 else "") + part + (after if number == len(parts) - 1 else ""))


def with_system(messages: Sequence[Message], system: str) -> tuple[str, list[Message]]:
    """The system prompt, which is the conversation's own where it has one, and the other messages."""
    if messages and messages[0]["role"] == "system":
        return messages[0]["content"], list(messages[1:])
    return system, list(messages)
