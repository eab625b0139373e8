"""The texts that drift is measured on: which of a set, as tokens, and how they share packs. Loads no torch.

Only places whose next token is an answer's count: they are what the model says, and so what is to stay. What it would
make of a user's words is never asked of it, and a stage that learns another template moves it without a loss.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator

import numpy as np

from megavlm.platform.errors import InputError
from megavlm.platform.shards import ShardReader

from ...data.assemble import PackArrays, Prepared, assemble
from ...data.context import ContextArrays
from ...data.conversation import Chat
from ...data.encoded import Encoded
from ...data.knapsack import best_fit
from ...data.samples import BadSample, image_fields, read_conversation

NO_ROW = -1  # of a place whose next token does not count


@dataclasses.dataclass(frozen=True)
class Texts:
    """Conversations without images: tokens int64 [n]; target bool [n], what answers are made of; offsets int64
    [texts + 1]. Each target, in their order, is a row of what is known of it."""

    tokens: np.ndarray
    target: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def rows(self) -> int:
        """How many tokens count."""
        return int(self.target.sum())

    @property
    def digest(self) -> str:
        """Of all that decides what is measured."""
        parts = (self.tokens.astype("<i8"), self.target.astype("<i1"), self.offsets.astype("<i8"))
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()

    def packed(self, length: int) -> list[list[int]]:
        """Which texts share a packed sequence of so many positions."""
        return best_fit(np.diff(self.offsets).tolist(), length)

    def pack(
        self, which: list[int], length: int, side: int | None, padding: int, has_context: bool
    ) -> tuple[PackArrays, np.ndarray]:
        """Some of them side by side as `assemble` does, and int64 [length]: the row of the token after each place."""
        spans = [slice(*self.offsets[k : k + 2]) for k in which]
        samples = [Prepared(_encoded(self.tokens[at], self.target[at], has_context), [], 1.0) for at in spans]
        numbers = np.where(self.target, np.cumsum(self.target) - 1, NO_ROW)
        after = [np.append(numbers[at][1:], NO_ROW) for at in spans]
        rows = np.concatenate([*after, np.full(length - sum(map(len, after)), NO_ROW, np.int64)])
        return assemble(samples, length, side, padding, has_context), rows


def read_texts(reader: ShardReader, chat: Chat, count: int, length: int) -> tuple[Texts, dict[str, int]]:
    """The first `count` texts of a set, each cut after `length` tokens; and why how many samples were passed by.

    Passed by are samples with images, unusable ones, and those whose answers begin behind `length`. Raises InputError
    where no text is left.
    """
    found: list[Encoded] = []
    passed: dict[str, int] = {}
    for encoded in _encodings(reader, chat, length, passed):
        found.append(encoded)
        if len(found) == count:
            break
    if not found:
        raise InputError(
            f"no text to measure drift on: {passed}", where=reader.url, fix="name a set of text in `texts`"
        )
    ends = np.cumsum([0, *(len(each.tokens) for each in found)], dtype=np.int64)
    tokens, target = (np.concatenate([getattr(each, name) for each in found]) for name in ("tokens", "target"))
    return Texts(tokens, target, ends), passed


def _encodings(reader: ShardReader, chat: Chat, length: int, passed: dict[str, int]) -> Iterator[Encoded]:
    for number in range(len(reader)):
        try:
            if image_fields(reader.fields(number)):
                raise BadSample("image", "it has an image")
            whole = chat.encode(read_conversation(reader.read(number)).messages, [])
            cut = _encoded(whole.tokens[:length], whole.target[:length], chat.has_context)
            if not cut.target.any():
                raise BadSample("long_question", f"its first answer begins behind {length} tokens")
        except BadSample as error:
            passed[error.reason] = passed.get(error.reason, 0) + 1
        else:
            yield cut


def _encoded(tokens: np.ndarray, target: np.ndarray, has_context: bool) -> Encoded:
    """A text as a sample; its first token is nobody's prediction."""
    target = target & (np.arange(len(target)) > 0)
    context = _nothing_beside(len(tokens)) if has_context else None
    return Encoded(tokens, target, np.zeros(len(tokens), bool), 0, context)


def _nothing_beside(length: int) -> ContextArrays:
    none = np.zeros(0, np.int64)
    return ContextArrays(none, none, none, np.full(length, -1, np.int64), none, none)
