"""Context parallelism: which positions of a sequence a rank holds, and the whole sequence's keys and values.

The pack as a whole is cut into 2 * cp pieces, and a rank holds one from the front and one from the back, so that causal
attention costs all the same (Llama 3, arXiv 2407.21783, 3.3.2). Samples may be cut: where they lie is said by
cu_seqlens of the whole pack. So the pack manifest knows nothing of cp, and no sample is padded to a multiple of it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor


def pieces(length: int, cp: int, rank: int) -> tuple[range, range]:
    """The two runs of positions that a rank holds of `length`, which 2 * cp divides."""
    size = length // (2 * cp)
    back = 2 * cp - 1 - rank
    return range(rank * size, (rank + 1) * size), range(back * size, (back + 1) * size)


def own_positions(length: int) -> Tensor:
    """int64 [length / cp]: the positions of the sequence that this rank holds, in its order."""
    cp, rank = parallel_state.get_context_parallel_world_size(), parallel_state.get_context_parallel_rank()
    front, back = pieces(length, cp, rank)
    return torch.tensor([*front, *back] if cp > 1 else [*range(length)])


def gather_sequence(part: Tensor) -> Tensor:
    """[s / cp, ...] of every rank -> [s, ...] in the sequence's order; its backward sums what the ranks ask for."""
    return _Gather.apply(part)


def _order(length: int, cp: int, device: torch.device) -> Tensor:
    """Where each position of the sequence stands once the ranks' parts lie one after the other."""
    held = [position for rank in range(cp) for run in pieces(length, cp, rank) for position in run]
    return torch.tensor(held, device=device).argsort()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        group = parallel_state.get_context_parallel_group()
        found = part.new_empty((len(part) * group.size(), *part.shape[1:]))
        dist.all_gather_into_tensor(found, part.contiguous(), group=group)
        ctx.order = _order(len(found), group.size(), part.device)
        return found[ctx.order]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        group = parallel_state.get_context_parallel_group()
        by_rank = torch.empty_like(grad)
        by_rank[ctx.order] = grad
        mine = grad.new_empty((len(grad) // group.size(), *grad.shape[1:]))
        dist.reduce_scatter_tensor(mine, by_rank, group=group)
        return mine
