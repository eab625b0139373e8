"""One conversation as token ids, and how it is put together, piece by piece."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from .context import ContextArrays
from .tokenizer import TextTokenizer

VISUAL_ID = 0  # stands under a visual token; the model overwrites its embedding


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One conversation.

    tokens int64 [n]; target bool [n], True where the token is to be learnt (as the label of the position before it);
    visual bool [n], True where a tile's visual token stands; tiles: how many tiles there are; context: those of them
    that are beside the sequence. None where no tile can be; an empty one where none is.
    """

    tokens: np.ndarray
    target: np.ndarray
    visual: np.ndarray
    tiles: int
    context: ContextArrays | None = None

    @property
    def inline(self) -> np.ndarray:
        """int64 [k]: the tiles whose visual tokens stand in the sequence, in their order there."""
        every = np.arange(self.tiles)
        return every if self.context is None else np.delete(every, self.context.tiles)

    def padded(self, length: int, padding: int) -> Encoded:
        """The same filled up to `length` positions, from whose tail nothing is learnt."""
        tail = length - len(self.tokens)
        return Encoded(
            tokens=np.concatenate([self.tokens, np.full(tail, padding, np.int64)]),
            target=np.concatenate([self.target, np.zeros(tail, bool)]),
            visual=np.concatenate([self.visual, np.zeros(tail, bool)]),
            tiles=self.tiles,
            context=None if self.context is None else self.context.longer(length),
        )


class Parts:
    """Runs of tokens being collected, each learnt or not, visual or not, and what the next text comes after."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._runs: list[list[int]] = []
        self._learnt: list[bool] = []
        self._seen: list[bool] = []
        self._after_special: bool | None = None  # None: a text would begin here
        self._tiles = 0
        self.length = 0  # positions so far
        self._context: list[tuple[int, int]] = []  # of each context tile, its number and who sees it first
        self._spelt: list[tuple[int, int]] = []  # of each context tile, from where to where its tag stands
        self._tag_ids: list[list[int]] = []  # of each context tile, where its tag does not stand in the sequence

    def text(self, text: str, learn: bool = False) -> None:
        """Ordinary text, tokenised by itself."""
        if not text:
            return
        begins, special = self._after_special is None, bool(self._after_special)
        self._add(self._tokenizer.encode(text) if begins else self._tokenizer.encode_after(text, special), learn)
        self._after_special = False

    def special(self, token: int, learn: bool, begins: bool) -> None:
        """One special token; `begins`: a text begins after it."""
        self._add([token], learn)
        self._after_special = None if begins else True

    def tile(self, tokens: int) -> None:
        """The visual tokens of the next tile."""
        self._add([VISUAL_ID] * tokens, learn=False, visual=True)
        self._after_special = None  # LLaVA's code tokenises what follows an image as a text of its own
        self._tiles += 1

    def named_tile(self, tag: str) -> None:
        """The next tile, beside the sequence, in which its tag stands: it is seen from there on."""
        since = self.length
        self.text(tag)
        self._beside(since, (since, self.length), [])

    def hidden_tile(self, tag: str, since: int) -> None:
        """The next tile, beside the sequence as its tag is, for all positions from `since` on."""
        self._beside(since, (0, 0), self._tokenizer.encode(tag) if tag else [])

    def encoded(self, has_context: bool) -> Encoded:
        """All of it. `has_context`: tiles can be beside the sequence, whether or not any is."""
        tokens = np.fromiter(itertools.chain.from_iterable(self._runs), np.int64)
        lengths = [len(run) for run in self._runs]
        target, visual = np.repeat(np.array([self._learnt, self._seen], bool), lengths, axis=1)
        return Encoded(tokens, target, visual, self._tiles, self._context_arrays() if has_context else None)

    def _add(self, ids: list[int], learn: bool, visual: bool = False) -> None:
        self._runs.append(ids)
        self._learnt.append(learn)
        self._seen.append(visual)
        self.length += len(ids)

    def _beside(self, since: int, spelt: tuple[int, int], tag_ids: list[int]) -> None:
        self._context.append((self._tiles, since))
        self._spelt.append(spelt)
        self._tag_ids.append(tag_ids)
        self._tiles += 1

    def _context_arrays(self) -> ContextArrays:
        tiles, since = np.array(self._context, np.int64).reshape(-1, 2).T
        tags = np.full(self.length, -1, np.int64)
        for number, (first, last) in enumerate(self._spelt):
            tags[first:last] = number
        return ContextArrays(
            tiles=tiles,
            since=since,
            until=np.full(len(tiles), self.length),
            tags=tags,
            tag_ids=_flat(self._tag_ids),
            tag_tiles=np.repeat(np.arange(len(tiles)), [len(ids) for ids in self._tag_ids]),
        )


def _flat(lists: Sequence[list[int]]) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(lists), np.int64)
