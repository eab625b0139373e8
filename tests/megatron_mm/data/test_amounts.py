"""What a global batch holds, summed up against loops over its samples and their images."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from megavlm.megatron_mm.data.amounts import amounts
from megavlm.megatron_mm.data.manifest import Entry, Pack
from megavlm.platform.images import ImageTiles

IMAGES = st.builds(ImageTiles, st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
ENTRIES = st.builds(
    Entry,
    set=st.just("vqa"),
    index=st.integers(0, 9),
    epoch=st.just(0),
    tokens=st.integers(1, 99),
    targets=st.just(1),
    weight=st.just(1.0),
    images=st.lists(IMAGES, max_size=3).map(tuple),
    substitute=st.just(-1),
)


@given(st.lists(st.lists(ENTRIES, max_size=4), min_size=1, max_size=4))
def test_amounts_are_sums_over_samples_and_images(packs: list[list[Entry]]) -> None:
    of = amounts([Pack(7 + k, 5, tuple(entries)) for k, entries in enumerate(packs)], 100, lambda image: image.rows)
    tokens = squares = seeing = seeing_squares = tiles = beside = pairs = 0
    cuts: dict[ImageTiles, int] = {}
    for entry in (entry for entries in packs for entry in entries):
        tokens, squares = tokens + entry.tokens, squares + entry.tokens**2
        if entry.images:
            seeing, seeing_squares = seeing + entry.tokens, seeing_squares + entry.tokens**2
        for image in entry.images:
            tiles, beside, pairs = tiles + image.tiles, beside + image.rows, pairs + image.rows * entry.tokens
            cuts[image] = cuts.get(image, 0) + 1
    assert (of.tokens, of.squares, of.seeing_tokens, of.seeing_squares) == (tokens, squares, seeing, seeing_squares)
    assert (of.tiles, of.context_tiles, of.pairs, dict(of.cuts)) == (tiles, beside, pairs, cuts)
    assert sum(image.tiles * count for image, count in of.cuts) == of.tiles and len(of.cuts) == len(cuts)
    assert (of.batch, of.rows, of.packs, of.positions) == (5, range(7, 7 + len(packs)), len(packs), 100 * len(packs))
    assert of.samples == sum(map(len, packs))
