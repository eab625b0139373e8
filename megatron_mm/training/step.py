"""One training step on megatron-core: tiles through the tower, packs through the pipeline, gradients, update."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import (
    MegatronOptimizer,
    OptimizerConfig,
    ParamKey,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module
from torch import Tensor, nn

from .. import backend
from ..backend.buckets import keep_padding
from ..config import AXES, Optimizer
from ..contracts import PackedBatch, StepBatch
from ..data.shares import Shares
from ..model import VisionLanguageModel, own_part
from ..tag_texts import TagTexts
from .encode import Lookers, Looking
from .overlap import Overlap
from .schedule import learning_rate
from .update import update

Precision = Literal["fp32", "bf16", "fp8", "fp8_tensorwise", "fp8_blockwise"]
AXIS = "megavlm_axis"  # in a parameter group: the axis it belongs to, where the recipe gives that one its own options


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


@dataclass(frozen=True)
class Wrapped:
    """A model inside megatron-core's data parallelism, in parts: each has gradients to be summed over other groups."""

    model: VisionLanguageModel
    stages: list[Any]  # DistributedDataParallel where something is trained, as the schedule wants them
    tower: DistributedDataParallel | None  # None where it is frozen
    lookers: Lookers = field(default_factory=Lookers)
    overlap: Overlap | None = None  # None where nothing is summed or gathered while the model computes

    def settled(self) -> VisionLanguageModel:
        """The model, once this rank has all that the others updated: to be asked for before its weights are read."""
        if self.overlap is not None:
            self.overlap.settle()
        return self.model

    @property
    def trained(self) -> list[DistributedDataParallel]:
        """The parts that have gradients."""
        return [*self.trained_stages, *([] if self.tower is None else [self.tower])]

    @property
    def trained_stages(self) -> list[DistributedDataParallel]:
        """Those of them that the schedule goes through."""
        return [stage for stage in self.stages if isinstance(stage, DistributedDataParallel)]


def wrap(
    model: VisionLanguageModel, precision: Precision = "fp32", overlap: bool = False, bucket: int | None = None
) -> Wrapped:
    """The model on this process' device inside megatron-core's data parallelism; freeze before, not after.

    `overlap`: as overlap.py says, in buckets of about `bucket` parameters (megatron-core's own size without it).
    """
    model = model.to(backend.device())
    if precision != "fp32":
        model.tower.bfloat16()
    config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=precision != "fp32",
        use_distributed_optimizer=True,
        overlap_grad_reduce=overlap,
        overlap_param_gather=overlap,
        align_param_gather=overlap,  # all gathers are begun together, in one order
        bucket_size=bucket,
    )
    stages = [stage if precision == "fp32" else Float16Module(stage.config, stage) for stage in model.stages]
    # in one bucket: megatron-core cuts buckets on the first stage alone, and the stages' copies are summed as they lie
    tower = _in_ddp(model.tower, config, disable_bucketing=True)
    if tower is not None and parallel_state.get_pipeline_model_parallel_rank() > 0:
        for parameter in tower.parameters():
            parameter.shared = True  # the same weights stand on the first stage: the gradient norm counts them there
    wrapped = Wrapped(model, [_in_ddp(stage, config) or stage for stage in stages], tower)
    return replace(wrapped, overlap=Overlap(wrapped.trained_stages, tower)) if overlap else wrapped


def _in_ddp(module: Any, config: DistributedDataParallelConfig, **options: bool) -> DistributedDataParallel | None:
    if not any(parameter.requires_grad for parameter in module.parameters()):
        return None
    return DistributedDataParallel(config=module.config, ddp_config=config, module=module, **options)


def make_optimizer(wrapped: Wrapped, options: Optimizer, precision: Precision = "fp32") -> MegatronOptimizer:
    """AdamW over the trainable parameters; biases and other vectors are not decayed. The learning rate starts at lr.

    Always megatron-core's distributed optimizer, one replica included: its checkpoints and a plain optimizer's do not
    fit each other, and the layout may change.
    """
    config = OptimizerConfig(
        optimizer="adam",
        lr=options.lr,
        min_lr=options.min_lr,
        weight_decay=options.weight_decay,
        adam_beta1=options.betas[0],
        adam_beta2=options.betas[1],
        adam_eps=options.eps,
        clip_grad=options.clip,
        bf16=precision != "fp32",
        params_dtype=backend.PRECISIONS[precision],
        use_distributed_optimizer=True,
        overlap_param_gather=wrapped.overlap is not None,
    )
    overrides = get_standard_config_overrides(config) | _overrides(wrapped.model, options)
    optimizer = get_megatron_optimizer(config, wrapped.trained, overrides, use_gloo_process_groups=False)
    keep_padding(optimizer)
    for group in optimizer.param_groups:  # megatron-core leaves this to its own scheduler: without it, norms decay
        group["weight_decay"] = options.of(group.get(AXIS))[2] * group["wd_mult"]
    for stage in wrapped.model.stages:
        stage.config.grad_scale_func = optimizer.scale_loss  # type: ignore[union-attr]
    return optimizer


def _overrides(model: VisionLanguageModel, options: Optimizer) -> dict[ParamKey, Any]:
    """A parameter group of its own for every axis that the recipe gives one, under its name in the group's AXIS.

    megatron-core's loading tells groups apart by their multipliers alone, and would give two that agree in them the
    options of one. We set the rates ourselves, so lr_mult is free to number them.
    """
    for axis in options.groups:
        for _, parameter in model.axis(axis):
            setattr(parameter, f"{AXIS}_{axis}", True)
    return {ParamKey(attr=f"{AXIS}_{axis}"): {AXIS: axis, "lr_mult": 2.0 + AXES.index(axis)} for axis in options.groups}


def set_rate(optimizer: MegatronOptimizer, options: Optimizer, step: int, steps: int) -> float:
    """Give every parameter group its learning rate for update `step` (from 0); returns that of the others."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, options, steps, group.get(AXIS))
    return learning_rate(step, options, steps)


def train_step(wrapped: Wrapped, optimizer: MegatronOptimizer, batch: StepBatch, objective: Any) -> StepResult:
    """Forward, backward and update on this rank's part of the global batch.

    Replicas may hold different numbers of packs, all of one length. The loss is the objective's total over the global
    batch divided by its weight over the global batch, so no layout and no way of packing changes it.
    """
    weight, targets, tokens = _global_sums(batch.packs, objective)  # before the packs leave the host: no waiting
    for part in wrapped.trained:
        part.zero_grad_buffer()
    optimizer.zero_grad()
    shares = replace(batch.shares, everywhere=wrapped.model.spec.injection.everywhere)
    looking = Looking(wrapped.model.tower, wrapped.lookers, shares, wrapped.model.spec.tokens_per_tile)
    tags = TagTexts(wrapped.model)
    with wrapped.overlap.step(_late(wrapped, batch.packs)) if wrapped.overlap else contextlib.nullcontext():
        visual = looking.see(batch.tiles.to(backend.device()))
        here = [pack.to(backend.device()) for pack in batch.packs]
        packs = [replace(pack, visual=values) for pack, values in zip(here, visual, strict=False)]
        packs = tags.give(packs + here[len(visual) :])
        with looking.own.measure(alone=wrapped.lookers.seat.is_alone):
            losses = run_schedule(wrapped.stages, packs, _weighted(objective, weight), forward_only=False)
        tags.learn()
        looking.learn()
    _finish_gradients(wrapped)
    updated, norm = update(optimizer)
    if wrapped.overlap:
        wrapped.overlap.gather()
    loss = _global_loss(losses)
    return StepResult(loss, norm, tokens, targets, updated, _not_finite(loss, losses), looking.own.seconds())


def _late(wrapped: Wrapped, packs: Sequence[PackedBatch]) -> list[nn.Parameter]:
    """What gets a gradient after the schedule: the text embeddings, where a pack's context has tags in words."""
    if not any(pack.context is not None and len(pack.context.tag_ids) for pack in packs):
        return []
    first = [stage.decoder.embedding for stage in wrapped.model.stages if stage.pre_process]  # type: ignore[union-attr]
    return [parameter for embedding in first for parameter in embedding.parameters()]  # type: ignore[union-attr]


def cut(replicas: Sequence[Sequence[PackedBatch]], lookers: Lookers) -> StepBatch:
    """This process' part of a global batch whose packs, of every replica, are at hand with their tiles."""
    seat = lookers.seat
    shares = Shares(seat.grid, [[len(pack.tiles) for pack in packs] for packs in replicas])
    tiles = torch.cat([pack.tiles for packs in replicas for pack in packs])
    share = shares.decodes(seat.member, seat.tp, seat.tp_rank)
    packs = [replace(pack, tiles=pack.tiles[:0]) for pack in replicas[seat.grid.place(seat.member)[0]]]
    return StepBatch(packs, [None] * len(packs), tiles[share.start : share.stop], shares)


LossFunction = Callable[[PackedBatch, Tensor], tuple[Tensor, Tensor, Any]]


def run_schedule(
    stages: Sequence[Any], packs: Sequence[PackedBatch], loss: LossFunction, *, forward_only: bool
) -> list[Any]:
    """megatron-core's pipeline schedule over `packs`; what `loss` reports of each, on the last stage only."""

    def forward_step(packs: Iterator[PackedBatch], stage: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
        pack = next(packs)
        return stage(pack), partial(loss, pack)

    feeds = [iter(packs) for _ in stages]
    return get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=feeds if len(stages) > 1 else feeds[0],
        model=list(stages),
        num_microbatches=len(packs),
        seq_length=packs[0].tokens.shape[1],
        micro_batch_size=1,
        forward_only=forward_only,
    )


def _weighted(objective: Any, weight: Tensor) -> LossFunction:
    """The objective's share of one pack in the global batch's loss, in the three parts megatron-core wants."""

    def loss(pack: PackedBatch, losses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mine = own_part(pack) if losses.shape[1] < pack.tokens.shape[1] else pack
        share = objective.total(losses, mine) / weight
        # A count of one token: the division by the global weight is done above, none is done later.
        return share, torch.ones((), dtype=torch.int, device=share.device), share.detach().clone()

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


def _global_sums(packs: Sequence[PackedBatch], objective: Any) -> tuple[Tensor, int, int]:
    """Loss weight, targets and positions of the global batch, over all data-parallel ranks."""
    weight = sum(float(objective.weight(pack)) for pack in packs)
    targets = sum(int(objective.targets(pack)) for pack in packs)
    tokens = sum(pack.tokens.numel() for pack in packs)
    sums = torch.tensor([weight, targets, tokens], dtype=torch.float64, device=backend.device())
    dist.all_reduce(sums, group=parallel_state.get_data_parallel_group())
    return sums[0].clamp(min=1e-8).float(), int(sums[1]), int(sums[2])


def _not_finite(loss: float, shares: list[Tensor]) -> tuple[int, ...]:
    return () if math.isfinite(loss) else tuple(k for k, share in enumerate(shares) if not math.isfinite(share))


def _global_loss(shares: list[Tensor]) -> float:
    """The sum of all packs' shares, told by the last pipeline stage to the others."""
    loss = torch.stack(shares).sum() if shares else torch.zeros((), device=backend.device())
    dist.all_reduce(loss, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    dist.broadcast(loss, last, group=parallel_state.get_pipeline_model_parallel_group())
    return loss.item()
