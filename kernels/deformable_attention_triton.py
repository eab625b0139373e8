"""Triton twin of deformable_attention: nothing sampled is kept, and no gradient is summed by atomics. Imported on use.

The gradient of the values is gathered, not scattered: the corners of all sampled points are sorted by the cell they
read, and each cell sums its own in that order. The sort costs about 80 bytes per sampled point while it lasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from . import deformable_attention_kernels as kernels

QUERIES, SAMPLES, ENTRIES = 16, 256, 16


class _DeformableAttention(torch.autograd.Function):
    """Keeps the inputs alone."""

    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, shapes: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        values, locations, weights = values.contiguous(), locations.contiguous(), weights.contiguous()
        ctx.save_for_backward(values, shapes, locations, weights)
        n, cells, heads, d = values.shape
        queries = locations.shape[1]
        out = values.new_empty(n, queries, heads * d)
        if out.numel():
            kernels.forward[_grid(values, queries)](
                values, shapes, locations, weights, out, queries, cells, **_shape(values, locations), QUERIES=QUERIES
            )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, None, torch.Tensor | None, Any]:
        grad, of_values, of_locations, of_weights = grad.contiguous(), None, None, None
        if ctx.needs_input_grad[0]:
            of_values = _of_values(grad, *ctx.saved_tensors)
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            of_locations, of_weights = _of_points(grad, *ctx.saved_tensors)
        return of_values, None, of_locations, of_weights


def _of_points(
    grad: torch.Tensor, values: torch.Tensor, shapes: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    of_locations, of_weights = torch.empty_like(locations), torch.empty_like(weights)
    if of_weights.numel():
        kernels.points_grad[_grid(values, locations.shape[1])](
            values, shapes, locations, weights, grad, of_locations, of_weights, locations.shape[1], values.shape[1],
            **_shape(values, locations), QUERIES=QUERIES,
        )  # fmt: skip
    return of_locations, of_weights


def _of_values(
    grad: torch.Tensor, values: torch.Tensor, shapes: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    n, cells, heads, _ = values.shape
    if not weights.numel():
        return torch.zeros_like(values)
    shape, nowhere = _shape(values, locations), n * cells * heads
    number = torch.int32 if nowhere < 2**31 else torch.int64  # half as many bits are sorted in half the time
    cell_of = torch.empty(weights.numel() * 4, dtype=number, device=grad.device)
    share_of = torch.empty(weights.numel() * 4, dtype=weights.dtype, device=grad.device)
    without = {key: shape[key] for key in ("HEADS", "LEVELS", "POINTS", "ACC")}
    kernels.corners[(triton.cdiv(weights.numel(), SAMPLES),)](
        shapes, locations, weights, cell_of, share_of, weights.numel(), locations.shape[1], cells, nowhere,
        SAMPLES=SAMPLES, **without,
    )  # fmt: skip
    cell_of, order = cell_of.sort(stable=True)  # stable: equal cells' entries stay in one order
    bounds = torch.searchsorted(cell_of, torch.arange(nowhere + 1, dtype=number, device=grad.device))
    of_values, reads = torch.empty_like(values), shape["LEVELS"] * shape["POINTS"] * 4
    kernels.values_grad[(nowhere,)](
        grad, order, share_of, bounds, of_values, READS=reads, D=shape["D"], LANES=shape["LANES"], ENTRIES=ENTRIES,
        ACC=shape["ACC"], num_warps=1,
    )  # fmt: skip
    return of_values


def _shape(values: torch.Tensor, locations: torch.Tensor) -> dict[str, Any]:
    heads, levels, points = locations.shape[2:5]
    d = values.shape[3]
    accumulate = tl.float64 if values.dtype == torch.float64 else tl.float32
    return {
        "HEADS": heads, "LEVELS": levels, "POINTS": points, "D": d, "LANES": triton.next_power_of_2(d),
        "ACC": accumulate,
    }  # fmt: skip


def _grid(values: torch.Tensor, queries: int) -> tuple[int, int]:
    """Images and heads first: the second dimension of a grid ends at 65,535."""
    return values.shape[0] * values.shape[2], triton.cdiv(queries, QUERIES)


def deformable_attention_triton(
    values: torch.Tensor, shapes: Sequence[tuple[int, int]], locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Same contract as `deformable_attention_torch`."""
    table, start = [], 0
    for rows, columns in shapes:
        table.append((rows, columns, start))
        start += rows * columns
    return _DeformableAttention.apply(
        values, torch.tensor(table, dtype=torch.int32, device=values.device), locations, weights
    )
