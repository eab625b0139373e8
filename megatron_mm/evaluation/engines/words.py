"""A stage's own text: its tokenizer, and its template as training writes it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer

from megavlm.platform.errors import InputError

from ...data.build import StageData
from ...data.encoded import Parts
from ...data.measure import template
from ...data.samples import IMAGE_MARK, Message
from ...data.templates.base import Image, Piece, Text
from ...data.tokenizer import TextTokenizer

# What ends a text, whatever the template: Qwen2's and Yi's, Llama 3's, Llama 2's.
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>")


def ends(tokenizer: TextTokenizer) -> frozenset[int]:
    """Those of `ENDS` that a tokenizer has: a model of plain text says them where a chat model ends its turn."""
    found = set()
    for token in ENDS:
        with contextlib.suppress(InputError):
            found.add(tokenizer.id_of(token))
    return frozenset(found)


def begins(tokenizer: TextTokenizer) -> tuple[int, ...]:
    """What a tokenizer.json puts before a text, by its own post-processor."""
    return tuple(Tokenizer.from_file(str(tokenizer.path)).encode("", add_special_tokens=True).ids)


class StageWords:
    """Text <-> token ids of a trained stage."""

    def __init__(self, spec: StageData) -> None:
        self.tokenizer, self._template = spec.tokenizer(), spec.data.template
        self.chat = template(spec.model, self.tokenizer, self._template)
        self.start, self.ends = begins(self.tokenizer), ends(self.tokenizer) | {self.chat.stop}

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """See `Engine`: the pieces that training makes of it, so that both tokenise alike."""
        check_marks(messages, 0)
        if messages[-1]["role"] != "assistant":
            return self.chat.prompt(messages, []).tokens.tolist()
        pieces, end = list(self._template.pieces(messages)), self._template.end()
        place = len(pieces) - 1 - pieces[::-1].index(end)
        return self._ids(pieces[:place])

    def _ids(self, pieces: Iterable[Piece]) -> list[int]:
        parts = Parts(self.tokenizer)
        for piece in pieces:
            if isinstance(piece, Text):
                parts.text(piece.text)
            elif not isinstance(piece, Image):
                parts.special(self.tokenizer.id_of(piece.token), False, piece.begins)
        return parts.encoded(has_context=False).tokens.tolist()


def check_marks(messages: Sequence[Message], images: int) -> None:
    """Raise InputError unless there are turns, and as many marks in the user's as there are images."""
    if not messages:
        raise InputError("a conversation without turns", fix="ask something")
    marks = sum(message["content"].count(IMAGE_MARK) for message in messages if message["role"] == "user")
    if marks != images:
        raise InputError(f"{marks} {IMAGE_MARK} mark(s) and {images} image(s)", fix="mark the place of every image")


def whole(start: Sequence[int], ids: Sequence[int], most: int) -> list[int]:
    """Token ids of a raw text with what the tokenizer puts before it; its beginning is lost where it is too long.

    Raises InputError where no token fits.
    """
    if most < 1:
        raise InputError("the answer may be longer than the model reads", fix="lower max_new_tokens")
    return [*start, *ids][-most:]
