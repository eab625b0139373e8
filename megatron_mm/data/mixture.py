"""What a stage's mixture comes to: how often each set is drawn from, for how long, and the global batches of that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from megavlm.platform.errors import InputError

from ..config import Mixture
from .batches import batches
from .columns import Sizes, usable
from .draw import Source, draw
from .rows import Rows


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


def global_batches(mixture: Mixture, sizes: Mapping[str, Sizes], seed: int) -> Iterator[Rows]:
    """The stage's global batches, one after the other: endless unless every set has epochs or a cap."""
    of, capacity = mixture.global_batch, mixture.sequence_length
    draws = draw(sources(mixture, sizes), capacity, mixture.shuffle_window, seed)
    grouped = mixture.order == "group_by_modality_length"
    return batches(draws, capacity, of.unit, of.size, seed, pack=mixture.pack, grouped=grouped)
