"""Conversations -> token ids and what to learn of them: ChatML, with every image written out tile by tile.

The template (Qwen2's): `<|im_start|>ROLE\\nCONTENT<|im_end|>\\n` per turn. Learnt are an assistant's CONTENT and its
`<|im_end|>`. Headers, contents and tile tags are tokenised each on its own, as generation meets them, so that training
and serving never see other tokens for the same text: joined and separate pieces can tokenise differently.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from .samples import IMAGE_MARK, Message
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


class _Parts:
    """Token ids being collected, with their two masks."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.target: list[bool] = []
        self.visual: list[bool] = []
        self.tiles = 0

    def text(self, ids: Sequence[int], learn: bool = False) -> None:
        self.tokens += ids
        self.target += [learn] * len(ids)
        self.visual += [False] * len(ids)

    def tile(self, tokens: int) -> None:
        self.tokens += [VISUAL_ID] * tokens
        self.target += [False] * tokens
        self.visual += [True] * tokens
        self.tiles += 1

    def encoded(self) -> Encoded:
        return Encoded(
            np.asarray(self.tokens, np.int64), np.asarray(self.target, bool), np.asarray(self.visual, bool), self.tiles
        )


class ChatML:
    """The template bound to a tokenizer and to what one tile costs.

    tile_prefix(tile_index, tile_count) is the text before a tile's tokens ("" for none); tokens_per_tile counts its
    visual tokens.
    """

    def __init__(
        self, tokenizer: TextTokenizer, tile_prefix: TilePrefix, tokens_per_tile: int, system: str = ""
    ) -> None:
        self._tokenizer = tokenizer
        self._tile_prefix = tile_prefix
        self.tokens_per_tile = tokens_per_tile
        self._system = system
        self._newline = tokenizer.encode("\n")

    def encode(self, messages: Sequence[Message], tile_counts: Sequence[int]) -> Encoded:
        """Encode whole turns. tile_counts[k] is the number of tiles (thumbnail included) of the k-th image."""
        return self._encode(messages, tile_counts).encoded()

    def prompt(self, messages: Sequence[Message], tile_counts: Sequence[int]) -> Encoded:
        """The same, ending with an open assistant turn, for generation to go on from."""
        parts = self._encode(messages, tile_counts)
        self._header(parts, "assistant")
        return parts.encoded()

    def _encode(self, messages: Sequence[Message], tile_counts: Sequence[int]) -> _Parts:
        parts, images = _Parts(), iter(tile_counts)
        if self._system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self._system}, *messages]
        for message in messages:
            learn = message["role"] == "assistant"
            self._header(parts, message["role"])
            pieces = message["content"].split(IMAGE_MARK) if message["role"] == "user" else [message["content"]]
            for index, piece in enumerate(pieces):
                if index:
                    self._image(parts, next(images))
                parts.text(self._tokenizer.encode(piece), learn)
            parts.text([self._tokenizer.im_end], learn)
            parts.text(self._newline)
        return parts

    def _header(self, parts: _Parts, role: str) -> None:
        parts.text([self._tokenizer.im_start, *self._tokenizer.encode(role + "\n")])

    def _image(self, parts: _Parts, tiles: int) -> None:
        for index in range(tiles):
            parts.text(self._tokenizer.encode(self._tile_prefix(index, tiles)))
            parts.tile(self.tokens_per_tile)
