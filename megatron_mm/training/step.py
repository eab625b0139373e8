"""One training step on megatron-core: tiles through the tower, packs through the pipeline, gradients, update."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads
from megatron.core.optimizer import (
    MegatronOptimizer,
)
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn

from .. import backend
from ..contracts import PackedBatch, StepBatch
from ..data.loader import shares_of
from ..language import own_part
from ..objectives.loss import Loss, Outcome
from ..tag_texts import TagTexts
from ..tiles import Tiles, joined
from .encode import Looking
from .update import update
from .wrapping import Wrapped


@dataclass(frozen=True)
class StepResult:
    """What one step did, the same on every rank."""

    loss: float  # of the global batch, before the update
    grad_norm: float  # global, before clipping
    tokens: int  # positions of the global batch, padding included
    targets: int  # of them those with a loss weight
    updated: bool  # False where a gradient was not finite and the optimizer skipped
    not_finite: tuple[int, ...] = ()  # of this rank's packs those whose loss is not; only where `loss` is not
    own: float = 0.0  # seconds that this rank worked by itself (own_time.py), and not the same on every rank
    parts: dict[str, float] = field(default_factory=dict)  # each objective's, where there are several


def train_step(wrapped: Wrapped, optimizer: MegatronOptimizer, batch: StepBatch, objective: Loss) -> StepResult:
    """Forward, backward and update on this rank's part of the global batch.

    Replicas may hold different numbers of packs, all of one length. The loss is the objective's total over the global
    batch divided by its weight over the global batch, so no layout and no way of packing changes it; of several
    objectives each is divided by its own.
    """
    weights, targets, tokens = _global_sums(batch.packs, objective)  # before the packs leave the host: no waiting
    for part in wrapped.trained:
        part.zero_grad_buffer()
    optimizer.zero_grad()
    looking = _looking(wrapped, batch)
    tags = TagTexts(wrapped.model)
    with wrapped.overlap.step(_late(wrapped, batch.packs)) if wrapped.overlap else contextlib.nullcontext():
        tiles, packs = batch.tiles.to(backend.device()), [pack.to(backend.device()) for pack in batch.packs]
        packs = _given(packs, "visual", looking.see(tiles))
        packs = _given(tags.give(packs), "taught", _teaching(wrapped, batch, tiles))
        with looking.own.measure(alone=wrapped.lookers.seat.is_alone):
            carried = wrapped.model.carried_rows(packs[0].length)
            shares = run_schedule(
                wrapped.stages, packs, _weighted(objective, weights), forward_only=False, carried=carried
            )
        tags.learn()
        looking.learn()
    _finish_gradients(wrapped)
    updated, norm = update(optimizer)
    if wrapped.overlap:
        wrapped.overlap.gather()
    loss, *parts = _global_losses(shares, objective)
    named = {part.name: value for part, value in zip(objective.parts, parts, strict=True)} if len(parts) > 1 else {}
    bad = _not_finite(loss, [share[0] for share in shares])
    return StepResult(loss, norm, tokens, targets, updated, bad, looking.own.seconds(), named)


def _given(packs: Sequence[PackedBatch], name: str, values: Sequence[Tensor]) -> list[PackedBatch]:
    """The packs with what was made of their tiles; as they are on pipeline stages that wanted nothing."""
    given: list[dict[str, Any]] = [{name: value} for value in values] or [{}] * len(packs)
    return [replace(pack, **one) for pack, one in zip(packs, given, strict=True)]


def _late(wrapped: Wrapped, packs: Sequence[PackedBatch]) -> list[nn.Parameter]:
    """What gets a gradient after the schedule: the text embeddings, where a pack's context has tags in words."""
    if not any(pack.context is not None and len(pack.context.tag_ids) for pack in packs):
        return []
    first = [stage.decoder.embedding for stage in wrapped.model.stages if stage.pre_process]  # type: ignore[union-attr]
    return [parameter for embedding in first for parameter in embedding.parameters()]  # type: ignore[union-attr]


def cut(replicas: Sequence[Sequence[PackedBatch]], wrapped: Wrapped) -> StepBatch:
    """This process' part of a global batch whose packs, of every replica, are at hand with their tiles."""
    seat, counts = wrapped.lookers.seat, [[len(pack.tiles) for pack in packs] for packs in replicas]
    every = [pack for packs in replicas for pack in packs]
    sizes = None if every[0].sizes is None else tuple(size for pack in every for size in pack.sizes or ())
    shares = shares_of(wrapped.model.spec, seat.grid, counts, sizes)
    tiles = joined([pack.tiles for pack in every])
    share = shares.decodes(seat.member, seat.tp, seat.tp_rank)
    packs = [replace(pack, tiles=pack.tiles[:0]) for pack in replicas[seat.grid.place(seat.member)[0]]]
    return StepBatch(packs, [None] * len(packs), tiles[share.start : share.stop], shares, sizes=sizes)


def _looking(wrapped: Wrapped, batch: StepBatch) -> Looking:
    """The step's tiles and the tower that looks at them."""
    model, sizes = wrapped.model, batch.sizes
    tokens = model.spec.tokens_per_tile if sizes is None else [model.spec.tokens_of(size) for size in sizes]
    return Looking(model.tower, wrapped.lookers, batch.shares, tokens, sizes or ())


def _teaching(wrapped: Wrapped, batch: StepBatch, tiles: Tiles) -> list[Tensor]:
    """What the teacher makes of each pack's tiles, on the last pipeline stage; nothing without a teacher."""
    teacher = wrapped.model.teacher
    if teacher is None:
        return []
    side = wrapped.model.spec.tiling.tile
    every = batch.sizes if batch.sizes is not None else ((side, side),) * batch.shares.total
    counts, shares = [teacher.count(size) for size in every], replace(batch.shares, wanted_by="last")
    found = Looking(teacher, wrapped.lookers, shares, counts, batch.sizes or ()).see(tiles)
    return found or [teacher.nothing() for _ in batch.packs]


LossFunction = Callable[[PackedBatch, Any], tuple[Tensor, Tensor, Any]]


def run_schedule(
    stages: Sequence[Any], packs: Sequence[PackedBatch], loss: LossFunction, *, forward_only: bool, carried: int = 0
) -> list[Any]:
    """megatron-core's pipeline schedule over `packs`; what `loss` reports of each, on the last stage only.

    `carried`: rows that stages send each other behind the hidden states.
    """

    def forward_step(packs: Iterator[PackedBatch], stage: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
        pack = next(packs)
        return stage(pack), partial(loss, pack)

    feeds = [iter(packs) for _ in stages]
    return get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=feeds if len(stages) > 1 else feeds[0],
        model=list(stages),
        num_microbatches=len(packs),
        seq_length=packs[0].length + carried,
        micro_batch_size=1,
        forward_only=forward_only,
    )


def _weighted(objective: Loss, weights: Tensor) -> LossFunction:
    """The objective's share of one pack in the global batch's loss, in the three parts megatron-core wants."""

    def loss(pack: PackedBatch, output: Tensor | Outcome) -> tuple[Tensor, Tensor, Tensor]:
        outcome = output if isinstance(output, Outcome) else Outcome(output)
        mine = own_part(pack) if outcome.losses.shape[1] < pack.tokens.shape[1] else pack
        shares = objective.shares(outcome, mine, weights)
        share = objective.sum(shares)
        # A count of one token: the division by the global weight is done above, none is done later.
        one = torch.ones((), dtype=torch.int, device=share.device)
        return share, one, torch.stack([share, *shares]).detach()

    return loss


def _finish_gradients(wrapped: Wrapped) -> None:
    """Sum over everyone who holds the same weights: replicas, and for the tower the pipeline stages before them.

    megatron-core's division by an integer count of tokens is left out: the loss is already normalised.
    """
    if wrapped.trained_stages:  # before the tower: overlapped sums of these began before its backward pass
        finalize_model_grads(wrapped.stages, None)
    if wrapped.tower is not None:
        for buffer in wrapped.tower.buffers if parallel_state.get_pipeline_model_parallel_world_size() > 1 else ():
            dist.all_reduce(buffer.grad_data, group=parallel_state.get_pipeline_model_parallel_group())
        wrapped.tower.finish_grad_sync()


def _global_sums(packs: Sequence[PackedBatch], objective: Loss) -> tuple[Tensor, int, int]:
    """Loss weight of each part, targets and positions of the global batch, over all data-parallel ranks."""
    weights = [sum(float(part.weight(pack)) for pack in packs) for part in objective.parts]
    targets = sum(int(objective.targets(pack)) for pack in packs)
    tokens = sum(pack.tokens.numel() for pack in packs)
    sums = torch.tensor([targets, tokens, *weights], dtype=torch.float64, device=backend.device())
    dist.all_reduce(sums, group=parallel_state.get_data_parallel_group())
    return sums[2:].clamp(min=1e-8).float(), int(sums[0]), int(sums[1])


def _not_finite(loss: float, shares: list[Tensor]) -> tuple[int, ...]:
    return () if math.isfinite(loss) else tuple(k for k, share in enumerate(shares) if not math.isfinite(share))


def _global_losses(shares: list[Tensor], objective: Loss) -> list[float]:
    """The sums of all packs' shares, the whole loss first, told by the last pipeline stage to the others."""
    nothing = torch.zeros(1 + len(objective.parts), device=backend.device())
    loss = torch.stack(shares).sum(0) if shares else nothing
    dist.all_reduce(loss, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    dist.broadcast(loss, last, group=parallel_state.get_pipeline_model_parallel_group())
    return loss.tolist()
