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

QUERIES, SAMPLES, ENTRIES = 16, 256, 16


@triton.jit
def _place(locations, at, inside, height, width, ACC: tl.constexpr):
    """Cell and fraction of a cell of the sampled points `at`; far outside is as good as just outside."""
    x = tl.load(locations + at * 2, mask=inside, other=0.0).to(ACC) * width - 0.5
    y = tl.load(locations + at * 2 + 1, mask=inside, other=0.0).to(ACC) * height - 0.5
    x = tl.minimum(tl.maximum(x, -2.0), width + 1.0)
    y = tl.minimum(tl.maximum(y, -2.0), height + 1.0)
    left, top = tl.floor(x), tl.floor(y)
    return left.to(tl.int32), top.to(tl.int32), x - left, y - top


@triton.jit
def _corner(CORNER: tl.constexpr, left, top, x, y):
    """Row, column and bilinear shares (of the row, of the column) of one of the four cells around a point."""
    row, column = top + CORNER // 2, left + CORNER % 2
    row_share = y if CORNER // 2 else 1 - y
    column_share = x if CORNER % 2 else 1 - x
    return row, column, row_share, column_share


@triton.jit
def _within(row, column, height, width):
    return (row >= 0) & (row < height) & (column >= 0) & (column < width)


@triton.jit
def _forward(
    values, shapes, locations, weights, out, queries, cells, HEADS: tl.constexpr, LEVELS: tl.constexpr,
    POINTS: tl.constexpr, D: tl.constexpr, LANES: tl.constexpr, QUERIES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    head, image = tl.program_id(0) % HEADS, (tl.program_id(0) // HEADS).to(tl.int64)
    query, lane = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES), tl.arange(0, LANES)
    inside, filled = query < queries, lane < D
    reader = (image * queries + query) * HEADS + head
    total = tl.zeros((QUERIES, LANES), ACC)
    for level in range(LEVELS):
        height, width = tl.load(shapes + level * 3), tl.load(shapes + level * 3 + 1)
        start = image * cells + tl.load(shapes + level * 3 + 2)
        for point in range(POINTS):
            at = (reader * LEVELS + level) * POINTS + point
            weight = tl.load(weights + at, mask=inside, other=0.0).to(ACC)
            left, top, x, y = _place(locations, at, inside, height, width, ACC)
            for corner in tl.static_range(4):
                row, column, row_share, column_share = _corner(corner, left, top, x, y)
                seen = inside & _within(row, column, height, width)
                cell = (start + row * width + column) * HEADS + head
                value = tl.load(
                    values + cell[:, None] * D + lane[None, :], mask=seen[:, None] & filled[None, :], other=0.0
                )
                total += (weight * row_share * column_share)[:, None] * value.to(ACC)
    tl.store(out + reader[:, None] * D + lane[None, :], total, mask=inside[:, None] & filled[None, :])


@triton.jit
def _points_grad(
    values, shapes, locations, weights, grad, grad_locations, grad_weights, queries, cells, HEADS: tl.constexpr,
    LEVELS: tl.constexpr, POINTS: tl.constexpr, D: tl.constexpr, LANES: tl.constexpr, QUERIES: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    head, image = tl.program_id(0) % HEADS, (tl.program_id(0) // HEADS).to(tl.int64)
    query, lane = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES), tl.arange(0, LANES)
    inside, filled = query < queries, lane < D
    reader = (image * queries + query) * HEADS + head
    push = tl.load(grad + reader[:, None] * D + lane[None, :], mask=inside[:, None] & filled[None, :], other=0.0)
    for level in range(LEVELS):
        height, width = tl.load(shapes + level * 3), tl.load(shapes + level * 3 + 1)
        start = image * cells + tl.load(shapes + level * 3 + 2)
        for point in range(POINTS):
            at = (reader * LEVELS + level) * POINTS + point
            weight = tl.load(weights + at, mask=inside, other=0.0).to(ACC)
            left, top, x, y = _place(locations, at, inside, height, width, ACC)
            whole, across, down = tl.zeros((QUERIES,), ACC), tl.zeros((QUERIES,), ACC), tl.zeros((QUERIES,), ACC)
            for corner in tl.static_range(4):
                row, column, row_share, column_share = _corner(corner, left, top, x, y)
                seen = inside & _within(row, column, height, width)
                cell = (start + row * width + column) * HEADS + head
                value = tl.load(
                    values + cell[:, None] * D + lane[None, :], mask=seen[:, None] & filled[None, :], other=0.0
                )
                product = tl.sum(value.to(ACC) * push.to(ACC), axis=1)
                whole += product * row_share * column_share
                across += product * row_share if corner % 2 else -product * row_share
                down += product * column_share if corner // 2 else -product * column_share
            tl.store(grad_weights + at, whole, mask=inside)
            tl.store(grad_locations + at * 2, across * weight * width, mask=inside)
            tl.store(grad_locations + at * 2 + 1, down * weight * height, mask=inside)


@triton.jit
def _corners(
    shapes, locations, weights, cell_of, share_of, samples, queries, cells, nowhere, HEADS: tl.constexpr,
    LEVELS: tl.constexpr, POINTS: tl.constexpr, SAMPLES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES)
    inside = at < samples
    level, reader = at // POINTS % LEVELS, at // (POINTS * LEVELS)
    head, image = reader % HEADS, reader // HEADS // queries
    height, width = tl.load(shapes + level * 3), tl.load(shapes + level * 3 + 1)
    start = image * cells + tl.load(shapes + level * 3 + 2)
    weight = tl.load(weights + at, mask=inside, other=0.0).to(ACC)
    left, top, x, y = _place(locations, at, inside, height, width, ACC)
    for corner in tl.static_range(4):
        row, column, row_share, column_share = _corner(corner, left, top, x, y)
        cell = (start + row * width + column) * HEADS + head
        cell = tl.where(_within(row, column, height, width), cell, nowhere)
        tl.store(cell_of + at * 4 + corner, cell, mask=inside)
        tl.store(share_of + at * 4 + corner, weight * row_share * column_share, mask=inside)


@triton.jit
def _values_grad(
    grad, order, share_of, bounds, grad_values, READS: tl.constexpr, D: tl.constexpr, LANES: tl.constexpr,
    ENTRIES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    cell, lane = tl.program_id(0).to(tl.int64), tl.arange(0, LANES)
    filled = lane < D
    first, last = tl.load(bounds + cell), tl.load(bounds + cell + 1)
    total = tl.zeros((LANES,), ACC)
    while first < last:
        place = first + tl.arange(0, ENTRIES)
        entry = tl.load(order + place, mask=place < last, other=0)
        share = tl.load(share_of + entry, mask=place < last, other=0.0)
        push = tl.load(grad + (entry // READS)[:, None] * D + lane[None, :], mask=filled[None, :], other=0.0)
        total += tl.sum(share[:, None] * push.to(ACC), axis=0)
        first += ENTRIES
    tl.store(grad_values + cell * D + lane, total, mask=filled)


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
            _forward[_grid(values, queries)](
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
        _points_grad[_grid(values, locations.shape[1])](
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
    _corners[(triton.cdiv(weights.numel(), SAMPLES),)](
        shapes, locations, weights, cell_of, share_of, weights.numel(), locations.shape[1], cells, nowhere,
        SAMPLES=SAMPLES, **without,
    )  # fmt: skip
    cell_of, order = cell_of.sort(stable=True)  # stable: equal cells' entries stay in one order
    bounds = torch.searchsorted(cell_of, torch.arange(nowhere + 1, dtype=number, device=grad.device))
    of_values, reads = torch.empty_like(values), shape["LEVELS"] * shape["POINTS"] * 4
    _values_grad[(nowhere,)](
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
