"""What stands in the sequence and what beside it, for each way of placing tiles, against a list written token by token.

A position is told as what it is: a piece of text, a tag's text, a tile's visual token. Who sees which tile follows from
that list alone, and is compared with what the arrays say.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megavlm.megatron_mm.data.as_torch import to_torch
from megavlm.megatron_mm.data.assemble import PackArrays, Prepared, assemble, grey
from megavlm.megatron_mm.data.conversation import Chat
from megavlm.megatron_mm.data.encoded import Encoded
from megavlm.megatron_mm.data.templates.chatml import ChatML
from megavlm.megatron_mm.data.tokenizer import load_tokenizer
from megavlm.megatron_mm.injection.tags import Placement
from megavlm.platform.images import ImageTiles, TilePlace

MINI, PER_TILE = load_tokenizer("mini"), 2
KINDS = ("inline", "cross", "nameless", "hybrid")
CUTS = st.sampled_from([ImageTiles(1, 1, 1), ImageTiles(3, 2, 1), ImageTiles(5, 2, 2)])


def name(place: TilePlace) -> str:
    return "<tile_global_thumbnail>" if place.thumbnail else f"<tile_{place.number + 1}>"


PLACEMENTS = {
    "inline": lambda place: Placement(name(place), True, True),
    "cross": lambda place: Placement(name(place), True, False),
    "nameless": lambda place: Placement("", True, False),
    "hybrid": lambda place: Placement(name(place), place.thumbnail, place.thumbnail),
}


def chat(kind: str, framed: bool) -> Chat:
    frame = {"image_start": "<Image>", "image_end": "</Image>"} if framed else {}
    return Chat(
        ChatML(system="", **frame), MINI, PLACEMENTS[kind], True, lambda image: PER_TILE, has_context=kind != "inline"
    )


class Position(NamedTuple):
    """A token of the sequence, and which tile's tag it spells or which tile it shows (numbers in the sample)."""

    token: int
    tag_of: int | None = None
    shows: int | None = None


class Written(NamedTuple):
    """A sample as a list. begins[tile]: from where on a tile beside the sequence is seen; texts[tile]: its tag."""

    positions: list[Position]
    begins: dict[int, int]
    texts: dict[int, list[int]]


def write(kind: str, framed: bool, images: list[ImageTiles]) -> Written:
    """A user's turn `a`, the images with a `b` behind each, and an answer `c`."""
    out, begins, texts, tile = [], {}, {}, 0

    def text(words: str, of: int | None = None) -> None:
        out.extend(Position(token, tag_of=of) for token in (MINI.encode(words) if words else []))

    def special(token: str) -> None:
        out.append(Position(MINI.id_of(token)))

    special("<|im_start|>")
    text("user\na")
    for image in images:
        waiting, first = "<Image>" if framed else "", len(out)
        for number in range(image.tiles):
            last = number == image.tiles - 1
            tag = "<tile_global_thumbnail>" if last else f"<tile_{number + 1}>"
            if kind == "inline" or (kind == "hybrid" and last):
                text(waiting + tag)
                out.extend(Position(0, shows=tile) for _ in range(PER_TILE))
                waiting = ""
            elif kind == "cross":
                text(waiting)
                begins[tile], texts[tile], waiting = len(out), [], ""
                text(tag, of=tile)
            else:
                begins[tile], texts[tile] = first, MINI.encode(tag) if kind == "hybrid" else []
            tile += 1
        text(waiting)
        text("</Image>" if framed else "")
        text("b")
    special("<|im_end|>")
    text("\n")
    special("<|im_start|>")
    text("assistant\n")
    text("c")
    special("<|im_end|>")
    text("\n")
    return Written(out, begins, texts)


def talk(images: list[ImageTiles]) -> list[dict[str, str]]:
    return [{"role": "user", "content": "a" + "<image>b" * len(images)}, {"role": "assistant", "content": "c"}]


def seen(pack: PackArrays, position: int) -> set[int]:
    """The tiles of the pack that a position sees beside the sequence."""
    c = pack.context
    tags = c.tags[position]
    if tags >= 0:
        return {int(c.tiles[tags])}
    return {int(t) for t, a, b in zip(c.tiles, c.since, c.until, strict=True) if a <= position < b}


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40)
@given(samples=st.lists(st.lists(CUTS, max_size=3), max_size=4), framed=st.booleans())
def test_a_pack_says_what_stands_where_and_who_sees_what(
    kind: str, samples: list[list[ImageTiles]], framed: bool
) -> None:
    bound, length = chat(kind, framed), 512
    written = [write(kind, framed, images) for images in samples]
    encoded = [bound.encode(talk(images), images) for images in samples]
    pack = assemble([Prepared(e, [grey(e.tiles, (2, 2))], 1.0) for e in encoded], length, 2, 9, bound.has_context)
    at = tile = 0
    tokens, shown, tag_texts = [], [], []
    for images, (positions, begins, texts) in zip(samples, written, strict=True):
        for k, position in enumerate(positions):
            if kind != "inline":
                every = {tile + t for t, since in begins.items() if k >= since}
                assert seen(pack, at + k) == (every if position.tag_of is None else {tile + position.tag_of})
            shown += [tile + position.shows] if position.shows is not None else []
        tag_texts += [(tile + t, token) for t, ids in texts.items() for token in ids]
        tokens += [position.token for position in positions]
        at, tile = at + len(positions), tile + sum(image.tiles for image in images)
    assert pack.tokens.tolist() == tokens + [9] * (length - at)
    inline = np.arange(tile) if pack.inline_tiles is None else pack.inline_tiles
    assert len(pack.tiles) == tile and np.repeat(inline, PER_TILE).tolist() == shown
    assert len(pack.visual_index) == len(shown) and all(tokens[k] == 0 for k in pack.visual_index)
    if kind == "inline":
        assert pack.context is None and pack.inline_tiles is None
        return
    assert sorted([*inline, *pack.context.tiles]) == list(range(tile))
    pairs = zip(pack.context.tiles[pack.context.tag_tiles], pack.context.tag_ids, strict=True)
    assert [(int(t), int(token)) for t, token in pairs] == tag_texts
    assert all(not seen(pack, p) for p in range(at, length))


def shape(encoded: Encoded) -> tuple[object, ...]:
    """What must not change where a sample cannot be read: its sizes, its tiles' places, and the text in the context."""
    context = encoded.context
    sizes = (len(encoded.tokens), encoded.tiles, int(encoded.visual.sum()), encoded.inline.tolist())
    if context is None:
        return sizes
    lengths = (len(context.since), len(context.until), len(context.tags))
    return *sizes, *lengths, context.tiles.tolist(), context.tag_ids.tolist(), context.tag_tiles.tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("framed", [False, True])
def test_a_blank_has_the_sizes_of_what_it_stands_for(kind: str, framed: bool) -> None:
    bound, images = chat(kind, framed), [ImageTiles(3, 1, 2), ImageTiles(1, 1, 1)]
    encoded = bound.encode(talk(images), images)
    blank = bound.blank(images, len(encoded.tokens))
    assert shape(blank) == shape(encoded) and encoded.target.any() and not blank.target.any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_context_is_handed_over_with_a_batch_axis(kind: str) -> None:
    """None where no tile can be beside the sequence, and an empty one where none is."""
    bound = chat(kind, True)
    for images in ([], [ImageTiles(3, 1, 2)]):
        prepared = [Prepared(bound.encode(talk(images), images), [grey(sum(i.tiles for i in images), (2, 2))], 1.0)]
        batch = to_torch(assemble(prepared, 96, 2, 9, bound.has_context))
        assert (batch.context is None) == (batch.inline_tiles is None) == (kind == "inline")
        if batch.context is not None:
            assert batch.context.tags.shape == (1, 96)
            beside = {"cross": 3, "nameless": 3, "hybrid": 2}[kind] if images else 0
            assert len(batch.context.tiles) == len(batch.context.since) == len(batch.context.until) == beside
            assert len(batch.inline_tiles) == len(batch.tiles) - beside
    filler = to_torch(assemble([], 96, 2, 9, bound.has_context))
    assert (filler.context is None) == (kind == "inline") and not len(filler.visual_index)
