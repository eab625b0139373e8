"""A model inside megatron-core's data parallelism, and the optimizer over what of it is trained."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import (
    MegatronOptimizer,
    OptimizerConfig,
    ParamKey,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.transformer.module import Float16Module

from .. import backend
from ..backend.buckets import keep_padding
from ..config import Optimizer
from ..model import VisionLanguageModel
from ..parts import OWNERS, axis_of, narrowest
from .encode import Lookers
from .overlap import Overlap
from .schedule import learning_rate

Precision = Literal["fp32", "bf16", "fp8", "fp8_tensorwise", "fp8_blockwise"]
GROUP = "megavlm_group"  # in a parameter group: the axis or part it is of, where the recipe gives that its own options


class _Wrapping(DistributedDataParallel):
    """megatron-core's, which goes when its stage does: its own hooks, held by autograd, would hold it for good."""

    def _make_backward_post_hook(self, param: torch.nn.Parameter) -> Callable[..., None]:
        return DistributedDataParallel._make_backward_post_hook(weakref.proxy(self), param)


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
        model.tower.bfloat16()  # a teacher is built so
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
    return _Wrapping(config=module.config, ddp_config=config, module=module, **options)


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
        group["weight_decay"] = options.of(group.get(GROUP))[2] * group["wd_mult"]
    for stage in wrapped.model.stages:
        stage.config.grad_scale_func = optimizer.scale_loss  # type: ignore[union-attr]
    return optimizer


def _overrides(model: VisionLanguageModel, options: Optimizer) -> dict[ParamKey, Any]:
    """A parameter group of its own for every part that the recipe gives one, under its name in the group's GROUP.

    megatron-core's loading tells groups apart by their multipliers alone, and would give two that agree in them the
    options of one. We set the rates ourselves, so lr_mult is free to number them.
    """
    for axis in {axis_of(part) for part in options.groups}:
        for inside, parameter in model.axis(axis):
            if (part := narrowest(options.groups, axis, inside)) is not None:
                setattr(parameter, f"{GROUP}_{part}", True)
    numbers = {part: 2.0 + number for number, part in enumerate(sorted(options.groups, key=_place))}
    return {ParamKey(attr=f"{GROUP}_{part}"): {GROUP: part, "lr_mult": number} for part, number in numbers.items()}


def _place(part: str) -> tuple[int, str]:
    return OWNERS.index(axis_of(part)), part


def set_rate(optimizer: MegatronOptimizer, options: Optimizer, step: int, steps: int) -> float:
    """Give every parameter group its learning rate for update `step` (from 0); returns that of the others."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, options, steps, group.get(GROUP))
    return learning_rate(step, options, steps)
