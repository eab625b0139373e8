"""The likeliest tokens of a place and one bucket for all others, over vocabularies that tensor parallelism splits.

Divergences of such distributions bound the whole ones' from below: to put outcomes into one bucket can only bring two
distributions closer (the data-processing inequality; Cover & Thomas, Elements of Information Theory, 2.7).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

TINY = 1e-30  # the least that is left for the other tokens: their logarithm stays finite


def likeliest(logits: Tensor, count: int) -> Tensor:
    """Logits [n, vocab / tp], this rank's part -> int64 [n, count]: the likeliest ids, best first, on every rank.

    Only the best of each rank and their ids travel.
    """
    group = parallel_state.get_tensor_model_parallel_group()
    best, ids = logits.float().topk(min(count, logits.shape[1]), dim=-1)
    ids = ids + group.rank() * logits.shape[1]
    if group.size() > 1:
        best, ids = (_side_by_side(each.contiguous(), group) for each in (best, ids))
    return ids.gather(1, best.topk(count, dim=-1).indices)


def bucketed(logits: Tensor, ids: Tensor) -> Tensor:
    """Logits [n, vocab / tp], ids int64 [n, k] -> float64 [n, k + 1]: log-probabilities of ids, and of all others.

    Nats, at temperature 1, of the whole vocabulary. Of each place k + 3 numbers travel, never the logits. The others'
    probability is added up and not what is left of one, so it is as exact as the rest.
    """
    group = parallel_state.get_tensor_model_parallel_group()
    logits = logits.float()
    highest = logits.amax(dim=-1, keepdim=True)
    dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
    shifted = logits - highest
    own = ids - group.rank() * logits.shape[1]
    here = (own >= 0) & (own < logits.shape[1])
    named = torch.where(here, shifted.gather(1, own.clamp(0, logits.shape[1] - 1)), 0.0)
    masses = shifted.exp()
    places, which = here.nonzero(as_tuple=True)
    masses[places, own[places, which]] = 0.0
    sums = torch.cat([named, masses.sum(dim=-1, keepdim=True)], dim=-1).double()
    dist.all_reduce(sums, group=group)
    others = sums[:, -1:].clamp(min=TINY)
    total = (sums[:, :-1].exp().sum(dim=-1, keepdim=True) + others).log()
    return torch.cat([sums[:, :-1], others.log()], dim=-1) - total


def divergence(before: Tensor, now: Tensor) -> Tensor:
    """Log-probabilities float [n, k] of two distributions -> KL(before || now) in nats, float64 [n].

    Each term is p log(p / q) - p + q, of which the last two sum to nothing: what was kept in float32 does not sum to 1
    exactly, and without them that error would count whole and not squared.
    """
    before, now = before.double(), now.double()
    p, q = before.exp(), now.exp()
    return (p * (before - now) - p + q).sum(dim=-1)


def _side_by_side(part: Tensor, group: dist.ProcessGroup) -> Tensor:
    parts = [torch.empty_like(part) for _ in range(group.size())]
    dist.all_gather(parts, part, group=group)
    return torch.cat(parts, dim=-1)
