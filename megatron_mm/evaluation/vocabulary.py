"""The most likely token when every tensor-parallel rank holds a part of the vocabulary."""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor


def parallel_argmax(logits: Tensor) -> Tensor:
    """Logits [n, vocab / tp], this rank's part -> int64 [n], the most likely id of the whole vocabulary, on every rank.

    Only the best value and its id travel, never the logits. Of equal logits the smallest id wins, whatever tp is.
    """
    group = parallel_state.get_tensor_model_parallel_group()
    best, place = smallest_argmax(logits)
    if group.size() == 1:
        return place
    place = place + group.rank() * logits.shape[-1]
    values = [torch.empty_like(best) for _ in range(group.size())]
    places = [torch.empty_like(place) for _ in range(group.size())]
    dist.all_gather(values, best.contiguous(), group=group)
    dist.all_gather(places, place.contiguous(), group=group)
    # Ranks hold rising ids, so the first rank with the best value holds the smallest id.
    winner = smallest_argmax(torch.stack(values, dim=-1))[1]
    return torch.stack(places, dim=-1).gather(-1, winner[:, None])[:, 0]


def smallest_argmax(values: Tensor) -> tuple[Tensor, Tensor]:
    """[n, m] -> (maximum [n], its smallest index int64 [n]); torch.argmax promises no choice among equals."""
    best = values.amax(dim=-1)
    is_best = values == best[:, None]
    return best, (is_best.cumsum(dim=-1) == 0).sum(dim=-1)
