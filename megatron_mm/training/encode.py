"""A step's tiles through the tower, shared out over all processes, and their gradients back again.

Before the pipeline runs, every process encodes its share (shares.py) and hands the visual tokens to those whose packs
hold them; after it, the gradients go the same way back. So no process waits for one that holds more images, and no
pipeline stage for the one that encodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from ..backend.distributed import TIMEOUT
from ..contracts import Sizes
from ..data.shares import Grid, Seat, Shares
from ..tiles import Tiles, VariedTiles, in_passes
from .own_time import OwnTime

PIXELS_AT_ONCE = 128 * 448**2  # per pass through the tower: of 448 px as many tiles as FP8 fills up to, and more


def seat() -> Seat:
    """This process' place in the run's layout, from megatron-core's groups."""
    tp = parallel_state.get_tensor_model_parallel_world_size()
    grid = Grid(
        parallel_state.get_data_parallel_world_size(),
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_context_parallel_world_size(),
    )
    return Seat(grid, dist.get_rank() // tp, tp, parallel_state.get_tensor_model_parallel_rank())


class Lookers:
    """The processes that share out the tiles: those that hold the same part of the tower. Every process makes one."""

    def __init__(self) -> None:
        self.seat = seat()
        tp = self.seat.tp
        members = [list(range(rank, dist.get_world_size(), tp)) for rank in range(tp)]
        self.group = [parallel_state.create_group(of, timeout=TIMEOUT) for of in members][self.seat.tp_rank]

    @property
    def member(self) -> int:
        """Which of them this process is."""
        return self.seat.member

    def exchange(self, values: Tensor, sends: Sequence[int], receives: Sequence[int]) -> Tensor:
        """Rows for each member in its order -> rows from each member in its order."""
        found = values.new_empty((sum(receives), *values.shape[1:]))
        dist.all_to_all_single(found, values.contiguous(), list(receives), list(sends), group=self.group)
        return found

    def gather_tiles(self, part: Tiles, counts: Sequence[int], sizes: Sizes = ()) -> Tiles:
        """The tiles that each tensor-parallel rank decoded, so many each, in their order; `sizes` where they differ."""
        if isinstance(part, Tensor):
            return self.gather(part, counts)
        ends = [0, *accumulate(counts)]
        runs = [sizes[first:last] for first, last in pairwise(ends)]
        return VariedTiles(self.gather(part.pixels, [sum(3 * h * w for h, w in run) for run in runs]), sizes)

    def gather(self, part: Tensor, sizes: Sequence[int]) -> Tensor:
        """What each tensor-parallel rank has, `sizes` of it, in their order."""
        if len(sizes) == 1:
            return part
        group = parallel_state.get_tensor_model_parallel_group()
        even = part.new_zeros((max(sizes), *part.shape[1:]))
        even[: len(part)] = part
        found = [torch.empty_like(even) for _ in sizes]
        dist.all_gather(found, even, group=group)
        return torch.cat([each[:size] for each, size in zip(found, sizes, strict=True)])


class Looking:
    """One step's tiles. `see` before the pipeline, `learn` after it; every process calls both."""

    def __init__(
        self, tower: MegatronModule, lookers: Lookers, shares: Shares, tokens: int | Sequence[int], sizes: Sizes = ()
    ) -> None:
        """`tokens`: visual tokens of every tile, or of each of the global batch's; `sizes` of those in pixels, where
        they differ."""
        self.tower, self.lookers, self.shares, self.sizes = tower, lookers, shares, sizes
        each = [tokens] * shares.total if isinstance(tokens, int) else tokens
        self._ends = torch.tensor([0, *accumulate(each)])  # of tile k the tokens self._ends[k]:self._ends[k + 1]
        self.trains = any(p.requires_grad for p in tower.parameters())
        self.own = OwnTime()
        self._seen: Tensor | None = None
        self._given: Tensor | None = None

    def see(self, tiles: Tiles) -> list[Tensor]:
        """The tiles that this process decoded, uint8 [n, 3, H, W] -> the visual tokens [tiles' tokens, width] of
        each of its packs; none on pipeline stages that want none."""
        member, shares = self.lookers.member, self.shares
        if shares.total == 0:
            return []
        tp = self.lookers.seat.tp
        gathered = self.lookers.gather_tiles(
            tiles, [len(shares.decodes(member, tp, k)) for k in range(tp)], self._own_sizes()
        )
        with self.own.measure():
            self._seen = self._encode(gathered)
        rows = torch.cat([self._rows(self._seen, run, shares.looks_at(member)) for run in shares.sends(member)])
        found = self.lookers.exchange(rows.detach(), self._sizes(shares.sends(member)), self._sizes(self._senders()))
        self._given = found[self._in_order()].requires_grad_(self.trains)
        return self._by_pack(self._given)

    def learn(self) -> None:
        """Hand the gradients back, and take them through the tower."""
        if self._given is None or self._seen is None or not self.trains:
            return
        grad = torch.zeros_like(self._given) if self._given.grad is None else self._given.grad
        by_sender = torch.empty_like(grad)
        by_sender[self._in_order()] = grad
        sends = self.shares.sends(self.lookers.member)
        back = self.lookers.exchange(by_sender, self._sizes(self._senders()), self._sizes(sends))
        total = torch.zeros_like(self._seen)
        mine = self.shares.looks_at(self.lookers.member)
        for run, rows in zip(sends, back.split(self._sizes(sends)), strict=True):
            self._rows(total, run, mine).add_(rows)  # one tile may have been used by several ranks of a replica
        if self._seen.requires_grad:
            with self.own.measure():
                self._seen.backward(total)
        self._seen = self._given = None

    def _encode(self, tiles: Tiles) -> Tensor:
        if not len(tiles):
            config = self.tower.config
            return torch.zeros(0, config.hidden_size, dtype=config.params_dtype, device=tiles.device)
        with torch.set_grad_enabled(self.trains or tiles.requires_grad):
            return torch.cat([self.tower(part).values for part in in_passes(tiles, PIXELS_AT_ONCE)])

    def _own_sizes(self) -> Sizes:
        mine = self.shares.looks_at(self.lookers.member)
        return self.sizes[mine.start : mine.stop]

    def _rows(self, values: Tensor, run: range, of: range) -> Tensor:
        """The tokens of a run of tiles, where `values` hold those of the tiles `of`."""
        first, last = (int(self._ends[edge] - self._ends[of.start]) for edge in (run.start, run.stop))
        return values[first:last] if len(run) else values[:0]

    def _sizes(self, runs: Sequence[range]) -> list[int]:
        return [int(self._ends[run.stop] - self._ends[run.start]) for run in runs]

    def _senders(self) -> list[range]:
        return self.shares.receives(self.lookers.member)

    def _in_order(self) -> Tensor:
        """Where each wanted token stands in what came, which is in the order of the members."""
        runs = [range(int(self._ends[run.start]), int(self._ends[run.stop])) for run in self._senders()]
        tokens = torch.cat([torch.arange(run.start, run.stop) for run in runs])
        return tokens.argsort().to(self._device())

    def _device(self) -> torch.device:
        return next(self.tower.parameters()).device

    def _by_pack(self, values: Tensor) -> list[Tensor]:
        member = self.lookers.member
        if not self.shares.wants(member):
            return []
        dp, _, _ = self.lookers.seat.grid.place(member)
        ends = [self.shares.needs(member).start, *accumulate(self.shares.counts[dp])]
        ends[1:] = [ends[0] + end for end in ends[1:]]
        return list(values.split(self._sizes([range(*edges) for edges in pairwise(ends)])))
