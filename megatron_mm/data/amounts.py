"""What a global batch holds, summed up from its rows of the manifest: every rank knows it without asking another."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

from megavlm.platform.images import ImageTiles

from .manifest import Pack

Beside = Callable[[ImageTiles], int]


@dataclasses.dataclass(frozen=True)
class Amounts:
    """Sums over a global batch. tokens: before padding. squares: of each sample's tokens, which attention sees.

    The `seeing_` ones count samples with an image alone. Samples that turn out unreadable are counted as they were
    packed.
    """

    batch: int  # number of the global batch in the manifest
    first_row: int
    packs: int
    samples: int
    positions: int  # padding included
    tokens: int
    squares: int
    seeing_tokens: int
    seeing_squares: int
    tiles: int
    context_tiles: int = 0  # of them those that are read from beside the sequence
    pairs: int = 0  # of a token and a context tile of its sample
    cuts: tuple[tuple[ImageTiles, int], ...] = ()  # every way in which images are cut, and how many of them are

    @property
    def rows(self) -> range:
        """The rows of the manifest."""
        return range(self.first_row, self.first_row + self.packs)


def amounts(packs: Sequence[Pack], sequence_length: int, beside: Beside = lambda image: 0) -> Amounts:
    """The sums over the packs of one global batch. `beside`: how many tiles of an image go into a context."""
    entries = [entry for pack in packs for entry in pack.entries]
    contexts = [sum(beside(image) for image in entry.images) for entry in entries]
    seeing = [entry.tokens for entry in entries if entry.images]
    return Amounts(
        batch=packs[0].batch,
        first_row=packs[0].row,
        packs=len(packs),
        samples=len(entries),
        positions=len(packs) * sequence_length,
        tokens=sum(entry.tokens for entry in entries),
        squares=sum(entry.tokens**2 for entry in entries),
        seeing_tokens=sum(seeing),
        seeing_squares=sum(tokens**2 for tokens in seeing),
        tiles=sum(entry.tiles for entry in entries),
        context_tiles=sum(contexts),
        pairs=sum(entry.tokens * context for entry, context in zip(entries, contexts, strict=True)),
        cuts=tuple(Counter(image for entry in entries for image in entry.images).items()),
    )
