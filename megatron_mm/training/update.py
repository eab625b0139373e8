"""The optimizer's step, left out where the gradient is no number."""

from __future__ import annotations

import math

from megatron.core.optimizer import ChainedOptimizer, MegatronOptimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32


def update(optimizer: MegatronOptimizer) -> tuple[bool, float]:
    """Clip and step; returns whether it did, and the gradient's norm over all ranks before clipping.

    megatron-core's own step looks for infinities only where it scales losses, in fp16: in fp32 and bf16 one gradient
    that is not finite makes every weight so, and the next checkpoint with them.
    """
    optimizer.prepare_grads()
    norm = float(optimizer.get_grad_norm())
    if not math.isfinite(norm):
        return False, norm
    for each in optimizer.chained_optimizers if isinstance(optimizer, ChainedOptimizer) else [optimizer]:
        parameters = [] if getattr(each, "is_stub_optimizer", False) else each.get_parameters()
        if parameters and each.config.clip_grad > 0:
            clip_grad_by_total_norm_fp32(parameters, max_norm=each.config.clip_grad, total_norm=norm)
    return bool(optimizer.step_with_ready_grads()), norm
