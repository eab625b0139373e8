"""Triton twin of nearest_centroids: a block of points passes all centroids and keeps its best. Imported only on use."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

POINTS, CENTROIDS, WIDTH = 64, 64, 32


@triton.jit
def _nearest(
    points, centroids, indices, products, n, points_stride, centroids_stride, k: tl.constexpr, d: tl.constexpr,
    WANTED: tl.constexpr, SLOTS: tl.constexpr, POINTS: tl.constexpr, CENTROIDS: tl.constexpr, WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    slot = tl.arange(0, SLOTS)
    best = tl.full((POINTS, SLOTS), float("-inf"), tl.float32)
    chosen = tl.full((POINTS, SLOTS), 2147483647, tl.int32)
    # slots beyond WANTED hold +inf: they are never the worst, and so never replaced
    best = tl.where(slot[None, :] < WANTED, best, float("inf"))
    for first in range(0, k, CENTROIDS):
        column = first + tl.arange(0, CENTROIDS)
        score = tl.zeros((POINTS, CENTROIDS), tl.float32)
        for start in range(0, d, WIDTH):
            part = start + tl.arange(0, WIDTH)
            p = tl.load(
                points + row[:, None] * points_stride + part[None, :],
                mask=(row[:, None] < n) & (part[None, :] < d), other=0.0,
            )  # fmt: skip
            c = tl.load(
                centroids + column[None, :].to(tl.int64) * centroids_stride + part[:, None],
                mask=(column[None, :] < k) & (part[:, None] < d), other=0.0,
            )  # fmt: skip
            score += tl.dot(p.to(tl.float32), c.to(tl.float32), input_precision=PRECISION)
        score = tl.where(column[None, :] < k, score, float("-inf"))
        for _ in range(WANTED):
            top, place = tl.max(score, axis=1, return_indices=True, return_indices_tie_break_left=True)
            worst = tl.min(best, axis=1)
            # of equally bad slots the one with the highest index goes: equal products belong to the lower index
            is_worst = best == worst[:, None]
            latest = tl.max(tl.where(is_worst, chosen, -1), axis=1)
            where = tl.min(tl.where(is_worst & (chosen == latest[:, None]), slot[None, :], SLOTS), axis=1)
            replace = (slot[None, :] == where[:, None]) & (top > worst)[:, None]
            best = tl.where(replace, top[:, None], best)
            chosen = tl.where(replace, (first + place)[:, None], chosen)
            score = tl.where(tl.arange(0, CENTROIDS)[None, :] == place[:, None], float("-inf"), score)
    out = row[:, None] * WANTED + slot[None, :]
    inside = (row[:, None] < n) & (slot[None, :] < WANTED)
    tl.store(products + out, best, mask=inside)
    tl.store(indices + out, chosen.to(tl.int64), mask=inside)


def nearest_centroids_triton(
    points: torch.Tensor, centroids: torch.Tensor, wanted: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Same contract as `nearest_centroids_torch`."""
    points, centroids = points.contiguous(), centroids.contiguous()
    n, d = points.shape
    indices = torch.empty(n, wanted, dtype=torch.int64, device=points.device)
    products = torch.empty(n, wanted, dtype=torch.float32, device=points.device)
    if n:
        _nearest[(triton.cdiv(n, POINTS),)](
            points, centroids, indices, products, n, points.stride(0), centroids.stride(0), k=len(centroids), d=d,
            WANTED=wanted, SLOTS=triton.next_power_of_2(wanted), POINTS=POINTS, CENTROIDS=CENTROIDS, WIDTH=WIDTH,
            # 16-bit numbers fit TF32 whole, so tensor cores lose nothing of them; float32 would lose 13 bits
            PRECISION="ieee" if points.dtype == torch.float32 else "tf32",
        )  # fmt: skip
    return _sorted(indices, products)


def _sorted(indices: torch.Tensor, products: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Best first, the lower index first among equals."""
    by_index = indices.argsort(dim=1)
    products, indices = products.gather(1, by_index), indices.gather(1, by_index)
    order = products.argsort(dim=1, descending=True, stable=True)
    return indices.gather(1, order), products.gather(1, order)
