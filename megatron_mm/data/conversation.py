"""Conversations -> token ids and what to learn of them, with every image written out tile by tile.

A template (`templates/`) says which text and which special tokens a conversation is. Its pieces are tokenised each on
its own, as generation meets them, so that training and serving never see other tokens for the same text: joined and
separate pieces can tokenise differently.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from megavlm.platform.errors import ConfigError, InputError

from .samples import Message
from .templates.base import Piece, Special, Template, Text
from .tokenizer import TextTokenizer

VISUAL_ID = 0  # stands under a visual token; the model overwrites its embedding

TilePrefix = Callable[[int, int], str]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One conversation as token ids.

    tokens int64 [n]; target bool [n], True where the token is to be learnt (as the label of the position before it);
    visual bool [n], True where a tile's visual token stands; tiles: how many tiles those make.
    """

    tokens: np.ndarray
    target: np.ndarray
    visual: np.ndarray
    tiles: int


class Chat:
    """A template bound to a tokenizer and to what one tile costs.

    tile_prefix(tile_index, tile_count) is the text before a tile's tokens ("" for none); tokens_per_tile counts its
    visual tokens. Raises ConfigError, naming it, when the tokenizer lacks a token of the template.
    """

    def __init__(
        self, template: Template, tokenizer: TextTokenizer, tile_prefix: TilePrefix, tokens_per_tile: int
    ) -> None:
        self._template, self._tokenizer, self._tile_prefix = template, tokenizer, tile_prefix
        self.tokens_per_tile = tokens_per_tile
        self._special = {token: _id_of(token, template, tokenizer) for token in template.special_tokens()}
        end = template.end()
        ids = [self._special[end.token]] if isinstance(end, Special) else tokenizer.encode_after(end.text, False)
        self.stop = ids[-1]  # the token that ends an answer

    def encode(self, messages: Sequence[Message], tile_counts: Sequence[int]) -> Encoded:
        """Encode whole turns. tile_counts[k] is the number of tiles (thumbnail included) of the k-th image.

        Raises ValueError when there are not as many images as marks.
        """
        return self._encode(self._template.pieces(messages), tile_counts)

    def prompt(self, messages: Sequence[Message], tile_counts: Sequence[int]) -> Encoded:
        """The same, ending with an open assistant turn, for generation to go on from."""
        return self._encode(self._template.prompt(messages), tile_counts)

    def _encode(self, pieces: Iterable[Piece], tile_counts: Sequence[int]) -> Encoded:
        parts, images = _Parts(self._tokenizer), iter(tile_counts)
        for piece in pieces:
            if isinstance(piece, Text):
                parts.text(piece.text, piece.learn)
            elif isinstance(piece, Special):
                parts.special(self._special[piece.token], piece)
            else:
                self._image(parts, images, len(tile_counts))
        if next(images, None) is not None:
            raise ValueError(f"{len(tile_counts)} images, and fewer marks")
        return parts.encoded()

    def _image(self, parts: _Parts, counts: Iterator[int], images: int) -> None:
        tiles = next(counts, None)
        if tiles is None:
            raise ValueError(f"{images} images, and more marks")
        for index in range(tiles):
            parts.text(self._tile_prefix(index, tiles), learn=False)
            parts.tile(self.tokens_per_tile)


class _Parts:
    """Runs of tokens being collected, each learnt or not, visual or not, and what the next text comes after."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._runs: list[list[int]] = []
        self._learnt: list[bool] = []
        self._seen: list[bool] = []
        self._after_special: bool | None = None  # None: a text would begin here

    def text(self, text: str, learn: bool) -> None:
        if not text:
            return
        begins, special = self._after_special is None, bool(self._after_special)
        self._add(self._tokenizer.encode(text) if begins else self._tokenizer.encode_after(text, special), learn)
        self._after_special = False

    def special(self, token: int, piece: Special) -> None:
        self._add([token], piece.learn)
        self._after_special = None if piece.begins else True

    def tile(self, tokens: int) -> None:
        self._add([VISUAL_ID] * tokens, learn=False, visual=True)
        self._after_special = None  # LLaVA's code tokenises what follows an image as a text of its own

    def _add(self, ids: list[int], learn: bool, visual: bool = False) -> None:
        self._runs.append(ids)
        self._learnt.append(learn)
        self._seen.append(visual)

    def encoded(self) -> Encoded:
        tokens = np.fromiter(itertools.chain.from_iterable(self._runs), np.int64)
        lengths = [len(run) for run in self._runs]
        target, visual = np.repeat(np.array([self._learnt, self._seen], bool), lengths, axis=1)
        return Encoded(tokens, target, visual, sum(self._seen))


def _id_of(token: str, template: Template, tokenizer: TextTokenizer) -> int:
    try:
        return tokenizer.id_of(token)
    except InputError as error:
        raise ConfigError(
            f"{error.what}, which template '{template.name}' needs", where="data.template", fix=error.fix
        ) from None
