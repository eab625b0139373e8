"""What a GPU does in one kernel, and torch on a CPU in several whose copies would be counted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend.adam import CpuFusedAdam
from .walk import replaced


@contextlib.contextmanager
def fused(wanted: bool) -> Iterator[None]:
    """Where `wanted`, RMSNorm and Adam as one kernel each while inside: of fake tensors, whose values nobody reads.

    On a CPU torch makes RMSNorm of five operations, two of which keep float32 copies of bf16 rows; on CUDA it has a
    kernel that keeps its input and one number per row. Apex's and Transformer Engine's FusedAdam need nothing beside
    the state, ours (backend/adam.py) lists of temporaries.
    """
    with contextlib.ExitStack() as stack:
        if wanted:
            stack.enter_context(replaced(F, "rms_norm", rms_norm))
            stack.enter_context(replaced(CpuFusedAdam, "_update", lambda self, group: None))
        yield


def rms_norm(rows: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """As F.rms_norm is called, for one dimension: sizes and what is kept, no values."""
    return _RMSNorm.apply(rows, weight)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor | None) -> Tensor:
        scale = torch.empty(rows.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(rows, weight, scale)
        return torch.empty_like(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None]:
        rows, weight, _ = ctx.saved_tensors
        return torch.empty_like(rows), torch.empty_like(weight) if ctx.needs_input_grad[1] else None
