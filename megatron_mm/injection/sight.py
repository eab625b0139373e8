"""Which rows of a sequence see which rows of a context, sample by sample."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from ..contracts import Context


class SampleSight(NamedTuple):
    """One sample's: rows [q] of the sequence held here, and of them and a run of the context bool [q, keys]."""

    rows: Tensor
    keys: slice
    seen: Tensor


Sight = list[SampleSight]  # rows that stand in none of them see nothing


@dataclasses.dataclass
class SightedParams(PackedSeqParams):
    """What the layers are told of a pack, besides where its samples lie: megatron-core hands only this through."""

    sight: Sight | None = None  # who sees what of its context
    cells: Tensor | None = None  # int64 [features, n]: positions whose hidden states an objective taps
    visual: Tensor | None = None  # bool [s / cp]: of the rows held here those where a visual token stands


def sight(context: Context, widths: Tensor, positions: Tensor, tag_mask: bool = True) -> Sight:
    """A pack's: `widths` int64 [m] tokens of each context tile, `positions` int64 [s] of the rows held here.

    A position sees the tiles of its sample that began before it; one that spells a tile's tag sees that tile alone
    (NVLM 4.3) where `tag_mask`. So nothing of a tile is seen before its tag.
    """
    ends = torch.cat([widths.new_zeros(1), widths.cumsum(0)]).tolist()
    starts = [0, *(torch.nonzero(context.until.diff())[:, 0] + 1).tolist(), len(context.until)]
    found = []
    for first, last in zip(starts, starts[1:], strict=False):
        since, until = context.since[first:last], context.until[first]
        rows = torch.nonzero((positions >= since.min()) & (positions < until))[:, 0]
        if not len(rows):
            continue
        seen = positions[rows, None] >= since
        if tag_mask:
            tag = context.tags[0, positions[rows]][:, None]
            seen &= (tag < 0) | (tag == torch.arange(first, last, device=tag.device))
        found.append(SampleSight(rows, slice(ends[first], ends[last]), seen.repeat_interleave(widths[first:last], 1)))
    return found


def next_row(before: Sight | None) -> Sight | None:
    """What the one token sees that comes after a generation's sample: all of its context."""
    if not before:
        return before
    ((_, keys, seen),) = before
    return [SampleSight(seen.new_zeros(1, dtype=torch.int64), keys, torch.ones_like(seen[:1]))]
