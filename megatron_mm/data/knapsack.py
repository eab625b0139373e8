"""Whole numbers into bins of one size: how conversations share packed sequences. Knows nothing of samples."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

_BITS = 32  # of a number that holds (free room, bin): compared and moved as one integer, which is fast


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins as lists of indices, ascending inside a bin; each item into the fullest bin that still takes it.

    Items longer than a quarter of the capacity come first, longest first: they decide how well the bins fill. The rest
    keep their order. Sorted too, samples of one length, which are mostly of one kind, would share packs, and a global
    batch would no longer be a draw from the mixture, which slows learning (docs/LOG.md has the figures).
    Leaves less than a quarter of the capacity empty in all bins but the last few. Raises ValueError for an item above
    `capacity`.
    """
    if max(lengths, default=0) > capacity:
        raise ValueError(f"an item of {max(lengths)} tokens does not fit {capacity}")
    long = sorted((k for k, length in enumerate(lengths) if 4 * length > capacity), key=lambda k: -lengths[k])
    bins: list[list[int]] = []
    room: list[int] = []  # free tokens << _BITS | bin, ascending: the first that fits is the fullest
    for index in [*long, *(k for k, length in enumerate(lengths) if 4 * length <= capacity)]:
        need = lengths[index] << _BITS
        at = bisect_left(room, need)
        if at == len(room):
            insort(room, (capacity << _BITS) - need | len(bins))
            bins.append([index])
        else:
            found = room.pop(at)
            bins[found & (1 << _BITS) - 1].append(index)
            if found - need >> _BITS:  # a full one is never looked at again
                insort(room, found - need)
    return [sorted(group) for group in bins]
