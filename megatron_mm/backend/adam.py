"""AdamW for the CPU in the state layout of apex's and Transformer Engine's FusedAdam."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class CpuFusedAdam(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019) on lists of tensors at once.

    The step count lives in the parameter group and a parameter's state is exactly exp_avg and exp_avg_sq (float32).
    megatron-core's distributed optimizer saves and reshards this layout; torch's AdamW keeps a step per parameter,
    which it cannot reload. `adam_w_mode=False` adds the decay to the gradient instead.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
        bias_correction: bool = True,
    ) -> None:
        super().__init__(
            params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, bias_correction=bias_correction)
        )
        self.adam_w_mode = adam_w_mode

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            if group["params"]:
                group["step"] = group.get("step", 0) + 1
                self._update(group)

    def _update(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        grads = [p.grad.float() for p in params]
        first, second = self._moments(params)
        beta1, beta2 = group["betas"]
        if self.adam_w_mode:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        else:
            grads = list(torch._foreach_add(grads, [p.float() for p in params], alpha=group["weight_decay"]))
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, value=1 - beta2)
        correct1 = 1 - beta1 ** group["step"] if group["bias_correction"] else 1.0
        correct2 = 1 - beta2 ** group["step"] if group["bias_correction"] else 1.0
        scale = torch._foreach_div(second, correct2)
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, group["eps"])
        torch._foreach_addcdiv_(params, first, scale, value=-group["lr"] / correct1)

    def _moments(self, params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        for p in params:
            if not self.state[p]:
                self.state[p]["exp_avg"] = torch.zeros_like(p, dtype=torch.float32)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p, dtype=torch.float32)
        return [self.state[p]["exp_avg"] for p in params], [self.state[p]["exp_avg_sq"] for p in params]
