"""What a stage's mixture comes to: how often each set is drawn from, for how long, and the global batches of that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from megavlm.platform.errors import InputError

from ..config import Mixture
from .batches import batches
from .columns import PIECE, Sizes, usable
from .draw import Source, draw
from .items import Items
from .rows import Rows
from .weave import weave


def sources(mixture: Mixture, sizes: Mapping[str, Sizes]) -> list[Source]:
    """The sets as sources, numbered as they are given; raises InputError for one without a usable sample.

    Weights are relative numbers of samples. Without any, a set of n usable samples weighs n^(1/temperature), or as many
    draws as its epochs make, so that sets with `epochs` end together.
    """
    found = []
    for number, (name, share) in enumerate(mixture.shares.items()):
        count = usable(sizes[name], mixture.sequence_length)
        if not count:
            what = f"data set '{name}' holds no sample of at most {mixture.sequence_length} tokens"
            raise InputError(what, where=f"data.sets.{name}", fix="raise mixture.sequence_length")
        passes = None if share.epochs is None else round(share.epochs * count)
        weight = share.weight or passes or count ** (1 / mixture.temperature)
        limits = [limit for limit in (passes, share.cap) if limit is not None]
        found.append(Source(number, name, sizes[name], weight, min(limits, default=None)))
    return found


def draws(mixture: Mixture, sizes: Mapping[str, Sizes], seed: int) -> Iterator[Items]:
    """The stage's draws in chunks; with a text share, text and the others woven together to that share.

    Raises InputError where a set of `text_sets` holds an image.
    """
    _refuse_pictures(mixture, sizes)
    found = {source.name: source for source in sources(mixture, sizes)}
    sides = [
        draw([found[name] for name in side], mixture.sequence_length, mixture.shuffle_window, seed)
        for side in mixture.sides
    ]
    if not mixture.text_share:
        return sides[0]
    return weave(sides, [mixture.text_share, 1 - mixture.text_share], mixture.text_share_of)


def global_batches(mixture: Mixture, sizes: Mapping[str, Sizes], seed: int) -> Iterator[Rows]:
    """The stage's global batches, one after the other: endless unless every set has epochs or a cap."""
    of, capacity = mixture.global_batch, mixture.sequence_length
    grouped = mixture.order == "group_by_modality_length"
    drawn = draws(mixture, sizes, seed)
    return batches(drawn, capacity, of.unit, of.size, seed, pack=mixture.pack, grouped=grouped)


def _refuse_pictures(mixture: Mixture, sizes: Mapping[str, Sizes]) -> None:
    for name in mixture.text_sets:
        if name in mixture.shares and (count := _pictured(sizes[name])):
            raise InputError(
                f"data set '{name}' is said to be text, and {count} of its samples hold an image",
                where="mixture.text_sets",
                fix=f"take '{name}' out of mixture.text_sets, or keep those samples in a set of their own",
            )


def _pictured(sizes: Sizes) -> int:
    """How many samples hold an image."""
    total = int(sizes.starts[-1])
    pieces = (sizes.images(first, min(first + PIECE, total)) for first in range(0, total, PIECE))
    return sum(int(np.count_nonzero(piece.counts)) for piece in pieces)
