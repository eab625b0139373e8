"""Triton kernels of deformable_attention; deformable_attention_triton.py says what for. Imported only on use."""

from __future__ import annotations

import triton
import triton.language as tl


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
def forward(
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
def points_grad(
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
def corners(
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
def values_grad(
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
