"""A softmax over the cells of each tile, tiles of all sizes at once: no loop over tiles, no padding to the largest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .image_rows import BLOCK


def softmax_means(cells: Tensor, queries: Tensor, counts: Sequence[int]) -> Tensor:
    """Cells [sum of `counts`, channels], queries [heads, channels] -> [tiles, heads, channels].

    Of each tile, which is a run of `counts[i]` cells and at least one, the means of its cells, weighted by
    softmax(queries . cells). Softmax and sums over blocks are float32. Sums run in a fixed order, here and in the
    backward pass: a result repeats to the bit.
    """
    blocks = [-(-count // BLOCK) for count in counts]
    total, lengths = sum(blocks), torch.tensor(blocks, dtype=torch.int64, device=cells.device)
    places = _places(counts, lengths)
    padded = cells.new_zeros(total * BLOCK, cells.shape[1]).index_copy_(0, places, cells).unflatten(0, (total, BLOCK))
    outside = torch.ones(total * BLOCK, 1, dtype=torch.bool, device=cells.device).index_fill_(0, places, False)
    scores = (padded @ queries.T).to(torch.promote_types(cells.dtype, torch.float32))
    scores = scores.masked_fill(outside.unflatten(0, (total, BLOCK)), -torch.inf)
    highest = _reduced("max", scores.detach().amax(1), lengths).repeat_interleave(lengths, 0, output_size=total)
    weights = (scores - highest[:, None]).exp()
    sums = torch.einsum("bkh,bkc->bhc", weights.to(cells.dtype), padded).to(weights.dtype)
    means = _reduced("sum", sums, lengths) / _reduced("sum", weights.sum(1), lengths)[..., None]
    return means.to(cells.dtype)


def _places(counts: Sequence[int], blocks: Tensor) -> Tensor:
    """Where each cell goes when every tile fills whole blocks. Made on the device, which nobody waits for."""
    each, cells = torch.tensor(counts, dtype=torch.int64, device=blocks.device), sum(counts)
    padding = blocks * BLOCK - each
    before = padding.cumsum(0) - padding
    return torch.arange(cells, device=blocks.device) + before.repeat_interleave(each, output_size=cells)


def _reduced(how: str, values: Tensor, lengths: Tensor) -> Tensor:
    """Over runs of rows. `unsafe`: the lengths are right, and looking at them would wait for the device."""
    return torch.segment_reduce(values, how, lengths=lengths, axis=0, unsafe=True)
