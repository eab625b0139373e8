"""Conversations -> token ids and what to learn of them, with every image written out tile by tile.

A template (`templates/`) says which text and which special tokens a conversation is. Its pieces are tokenised each on
its own, as generation meets them, so that training and serving never see other tokens for the same text: joined and
separate pieces can tokenise differently.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.images import ImageTiles, TilePlace, places

from ..injection.tags import Placement
from .encoded import Encoded, Parts
from .samples import Message
from .templates.base import Image, Piece, Special, Template, Text
from .tokenizer import TextTokenizer


class Chat:
    """A template bound to a tokenizer, and to where the tiles of an image go and what each of them costs.

    placement(place): a tile's tag, and whether tag and visual tokens stand in the sequence; thumbnail: whether the
    tiling makes thumbnails; has_context: whether tiles can be beside the sequence. Raises ConfigError, naming it, when
    the tokenizer lacks a token of the template.
    """

    def __init__(
        self,
        template: Template,
        tokenizer: TextTokenizer,
        placement: Callable[[TilePlace], Placement],
        thumbnail: bool,
        tokens_per_tile: Callable[[ImageTiles], int],
        has_context: bool = False,
    ) -> None:
        self._template, self._tokenizer = template, tokenizer
        self.tokens_per_tile, self.has_context = tokens_per_tile, has_context
        self._placed = functools.lru_cache(256)(lambda image: [placement(each) for each in places(image, thumbnail)])
        self._special = {token: _id_of(token, template, tokenizer) for token in template.special_tokens()}
        end = template.end()
        ids = [self._special[end.token]] if isinstance(end, Special) else tokenizer.encode_after(end.text, False)
        self.stop = ids[-1]  # the token that ends an answer

    def encode(self, messages: Sequence[Message], images: Sequence[ImageTiles]) -> Encoded:
        """Encode whole turns; images[k] is how the k-th image is cut.

        Raises ValueError when there are not as many images as marks.
        """
        return self._encode(self._template.pieces(messages), images)

    def prompt(self, messages: Sequence[Message], images: Sequence[ImageTiles]) -> Encoded:
        """The same, ending with an open assistant turn, for generation to go on from."""
        return self._encode(self._template.prompt(messages), images)

    def blank(self, images: Sequence[ImageTiles], length: int) -> Encoded:
        """What stands for a sample whose text is not known: nothing to learn, and places for the tiles of its images.

        They are as many in the sequence and in the context, with the same tags there, so that all sizes stay.
        """
        parts = Parts(self._tokenizer)
        for image in images:
            for tag, tag_inline, inline in self._placed(image):
                if inline:
                    parts.tile(self.tokens_per_tile(image))
                else:
                    parts.hidden_tile("" if tag_inline else tag, since=0)
        return parts.encoded(self.has_context).padded(length, self._tokenizer.padding)

    def _encode(self, pieces: Iterable[Piece], images: Sequence[ImageTiles]) -> Encoded:
        parts, left = Parts(self._tokenizer), iter(images)
        for piece in pieces:
            if isinstance(piece, Text):
                parts.text(piece.text, piece.learn)
            elif isinstance(piece, Special):
                parts.special(self._special[piece.token], piece.learn, piece.begins)
            else:
                self._image(parts, _next(left, len(images)), piece)
        if next(left, None) is not None:
            raise ValueError(f"{len(images)} images, and fewer marks")
        return parts.encoded(self.has_context)

    def _image(self, parts: Parts, image: ImageTiles, frame: Image) -> None:
        """Its frame, tags and tiles. The frame's start and the first tag are one text where the tag's tile stands in
        the sequence, as vLLM writes NVLM-D's prompts; a tag that looks at a tile beside it is a text of its own."""
        begin, before = parts.length, frame.start
        for tag, tag_inline, inline in self._placed(image):
            if inline:
                parts.text(before + (tag if tag_inline else ""))
                parts.tile(self.tokens_per_tile(image))
                before = ""
            elif tag and tag_inline:
                parts.text(before)
                parts.named_tile(tag)
                before = ""
            else:
                parts.hidden_tile(tag, since=begin)
        parts.text(before)
        parts.text(frame.end)


def _next(images: Iterator[ImageTiles], count: int) -> ImageTiles:
    found = next(images, None)
    if found is None:
        raise ValueError(f"{count} images, and more marks")
    return found


def _id_of(token: str, template: Template, tokenizer: TextTokenizer) -> int:
    try:
        return tokenizer.id_of(token)
    except InputError as error:
        raise ConfigError(
            f"{error.what}, which template '{template.name}' needs", where="data.template", fix=error.fix
        ) from None
