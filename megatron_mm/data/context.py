"""What of a sample or a pack is read from beside its sequence, as numpy arrays. Loads no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np


@dataclasses.dataclass(frozen=True)
class ContextArrays:
    """megatron_mm.contracts.Context without its batch axis. Context tiles are numbered from 0 through `tiles`.

    tiles int64 [m]: numbers among all tiles, ascending; since, until int64 [m]: the positions that see it; tags
    int64 [s]: the context tile whose tag stands there, -1 where none; tag_ids int64 [t]: tags' text that stands in the
    context; tag_tiles int64 [t]: the context tile it names.
    """

    tiles: np.ndarray
    since: np.ndarray
    until: np.ndarray
    tags: np.ndarray
    tag_ids: np.ndarray
    tag_tiles: np.ndarray

    def longer(self, length: int) -> ContextArrays:
        """That of a sample which padding makes `length` positions long."""
        more = np.full(length - len(self.tags), -1, np.int64)
        return dataclasses.replace(self, tags=np.concatenate([self.tags, more]))


def side_by_side(contexts: Sequence[ContextArrays], tiles: Sequence[int], length: int) -> ContextArrays:
    """The context of samples one after the other, with so many tiles each, in a sequence of `length` positions."""
    at = _starts(len(context.tags) for context in contexts)
    first_tile, first = _starts(tiles), _starts(len(context.tiles) for context in contexts)
    tags = [np.where(each.tags < 0, -1, each.tags + k) for each, k in zip(contexts, first, strict=False)]
    return ContextArrays(
        tiles=_shifted([context.tiles for context in contexts], first_tile),
        since=_shifted([context.since for context in contexts], at),
        until=_shifted([context.until for context in contexts], at),
        tags=np.concatenate([*tags, np.full(length - at[-1], -1, np.int64)]),
        tag_ids=_shifted([context.tag_ids for context in contexts], [0] * len(contexts)),
        tag_tiles=_shifted([context.tag_tiles for context in contexts], first),
    )


def _starts(sizes: Iterable[int]) -> list[int]:
    """Where each begins, and the end of the last."""
    return list(accumulate(sizes, initial=0))


def _shifted(parts: Sequence[np.ndarray], offsets: Sequence[int]) -> np.ndarray:
    shifted = (part + offset for part, offset in zip(parts, offsets, strict=False))
    return np.concatenate([np.zeros(0, np.int64), *shifted])
