"""One training step on megatron-core: data parallelism around the model, the optimizer, and a global batch through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module
from torch import Tensor

from .. import backend
from ..config import Optimizer, Parallel
from ..contracts import PackedBatch
from ..model import VisionLanguageModel

Precision = Literal["fp32", "bf16", "fp8"]


@dataclass(frozen=True)
class StepResult:
    """What one step did, the same on every rank."""

    loss: float  # of the global batch, before the update
    grad_norm: float  # global, before clipping
    tokens: int  # positions of the global batch, padding included
    targets: int  # of them those with a loss weight
    updated: bool  # False where a gradient was not finite and the optimizer skipped


def wrap(model: VisionLanguageModel, parallel: Parallel, precision: Precision = "fp32") -> DistributedDataParallel:
    """The model on this process' device inside megatron-core's data parallelism; freeze before, not after."""
    model = model.to(backend.device())
    inner = model if precision == "fp32" else Float16Module(model.config, model)
    config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=precision != "fp32", use_distributed_optimizer=parallel.distributed_optimizer
    )
    return DistributedDataParallel(config=model.config, ddp_config=config, module=inner)


def unwrap(model: Any) -> VisionLanguageModel:
    """The VisionLanguageModel inside `wrap`'s layers."""
    while not isinstance(model, VisionLanguageModel):
        model = model.module
    return model


def make_optimizer(
    model: DistributedDataParallel, options: Optimizer, parallel: Parallel, precision: Precision = "fp32"
) -> MegatronOptimizer:
    """AdamW over the trainable parameters; biases and other vectors are not decayed. The learning rate starts at lr."""
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
        use_distributed_optimizer=parallel.distributed_optimizer,
    )
    optimizer = get_megatron_optimizer(config, [model], use_gloo_process_groups=False)
    for group in optimizer.param_groups:  # megatron-core leaves this to its own scheduler: without it, norms decay
        group["weight_decay"] = options.weight_decay * group["wd_mult"]
    model.config.grad_scale_func = optimizer.scale_loss
    model.config.finalize_model_grads_func = _finalize
    return optimizer


def train_step(
    model: DistributedDataParallel, optimizer: MegatronOptimizer, packs: Sequence[PackedBatch], objective: Any
) -> StepResult:
    """Forward, backward and update on this data-parallel rank's share `packs` of the global batch.

    Every rank has the same number of packs, all of one length. The loss is the objective's total over the global
    batch divided by its weight over the global batch, so no layout and no way of packing changes it.
    """
    weight, targets, tokens = _global_sums(packs, objective)  # before the packs leave the host: no waiting for the GPU
    packs = [pack.to(backend.device()) for pack in packs]
    model.zero_grad_buffer()
    optimizer.zero_grad()
    losses = run_schedule(model, packs, _weighted(objective, weight), forward_only=False)
    updated, grad_norm, _ = optimizer.step()
    return StepResult(_global_loss(losses), float(grad_norm or 0.0), tokens, targets, bool(updated))


LossFunction = Callable[[PackedBatch, Tensor], tuple[Tensor, Tensor, Any]]


def run_schedule(model: Any, packs: Sequence[PackedBatch], loss: LossFunction, *, forward_only: bool) -> list[Any]:
    """megatron-core's pipeline schedule over `packs`; what `loss` reports of each, on the last stage only."""

    def forward_step(packs: Iterator[PackedBatch], model: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
        pack = next(packs)
        return model(pack), partial(loss, pack)

    return get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter(packs),
        model=model,
        num_microbatches=len(packs),
        seq_length=packs[0].tokens.shape[1],
        micro_batch_size=1,
        forward_only=forward_only,
    )


def _weighted(objective: Any, weight: Tensor) -> LossFunction:
    """The objective's share of one pack in the global batch's loss, in the three parts megatron-core wants."""

    def loss(pack: PackedBatch, losses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        share = objective.total(losses, pack) / weight
        # A count of one token: the division by the global weight is done above, _finalize does none.
        return share, torch.ones((), dtype=torch.int, device=share.device), share.detach().clone()

    return loss


def _finalize(model: list[Any], num_tokens: Tensor | None = None, **options: Any) -> None:
    """megatron-core's reductions without its division by an integer count: the loss is already normalised."""
    finalize_model_grads(model, None, **options)


def _global_sums(packs: Sequence[PackedBatch], objective: Any) -> tuple[Tensor, int, int]:
    """Loss weight, targets and positions of the global batch, over all data-parallel ranks."""
    weight = sum(float(objective.weight(pack)) for pack in packs)
    targets = sum(int(objective.targets(pack)) for pack in packs)
    tokens = sum(pack.tokens.numel() for pack in packs)
    sums = torch.tensor([weight, targets, tokens], dtype=torch.float64, device=backend.device())
    dist.all_reduce(sums, group=parallel_state.get_data_parallel_group())
    return sums[0].clamp(min=1e-8).float(), int(sums[1]), int(sums[2])


def _global_loss(shares: list[Tensor]) -> float:
    """The sum of all packs' shares, told by the last pipeline stage to the others."""
    loss = torch.stack(shares).sum() if shares else torch.zeros((), device=backend.device())
    dist.all_reduce(loss, group=parallel_state.get_data_parallel_group())
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    dist.broadcast(loss, last, group=parallel_state.get_pipeline_model_parallel_group())
    return loss.item()
