"""The kernels: Triton twin, plain torch and torch.compile of it, against bytes or FLOPs that none can do without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timing import CUDA, DEVICE, compiled, forward_backward, seconds

from megavlm.kernels.deformable_attention import deformable_attention
from megavlm.kernels.merge_tokens import merge_tokens
from megavlm.kernels.nearest_centroids import POINTS_AT_ONCE, nearest_centroids, nearest_centroids_torch
from megavlm.kernels.tile_normalise import tile_normalise, tile_normalise_torch

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Twins = dict[str, Callable[[], Any]]


def kernels(dry: bool, ceilings: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per kernel and size: floor, and seconds of every way to do it."""
    rows = [_normalise(2 if dry else 512)]
    for width in (64,) if dry else (4096, 8192):
        rows += [_merge(256 if dry else 16384, width, backward) for backward in (False, True)]
    # MMFuser reads four maps and then one; at 64 tiles grid_sample keeps 1.2 GB of sampled points in float32
    for levels in (4, 1):
        rows += [
            _deformable(*((1, 3, 2, 8) if dry else (64, 24, 16, 64)), levels, backward) for backward in (False, True)
        ]
    rows.append(_nearest(*((64, 16, 32) if dry else (1_000_000, 50_000, 768))))
    for row in rows:
        row["floor"] = max(row["bytes"] / ceilings["bytes_per_second"], row["flops"] / ceilings["bf16_flops"])
    return rows


def _timed(name: str, size: str, bytes_: float, flops: float, twins: Twins) -> dict[str, Any]:
    if not CUDA:
        twins = {way: work for way, work in twins.items() if way != "triton"}
    times = {way: seconds(work, repeats=5, warm=2) for way, work in twins.items()}
    return {"kernel": name, "size": size, "bytes": bytes_, "flops": flops, "seconds": times}


def _normalise(count: int) -> dict[str, Any]:
    side, patch = 448, 14
    tiles = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, device=DEVICE)
    fixed = (patch, MEAN, STD)
    plain = compiled(tile_normalise_torch)
    twins: Twins = {
        "triton": lambda: tile_normalise(tiles, *fixed, dtype=torch.bfloat16, backend="triton"),
        "torch": lambda: tile_normalise_torch(tiles, *fixed, "nchw", torch.bfloat16),
        "compile": lambda: plain(tiles, *fixed, "nchw", torch.bfloat16),
    }
    return _timed("tile_normalise", f"{count} tiles of {side}", tiles.numel() * 3, 0, twins)


def _merge(rows: int, width: int, backward: bool) -> dict[str, Any]:
    text = torch.randn(rows, width, dtype=torch.bfloat16, device=DEVICE, requires_grad=backward)
    visual = torch.randn(rows // 2, width, dtype=torch.bfloat16, device=DEVICE, requires_grad=backward)
    index = torch.randperm(rows, device=DEVICE)[: rows // 2]
    plain = compiled(lambda *of: merge_tokens(*of, backend="torch"))
    ways: Twins = {
        "triton": lambda: merge_tokens(text, visual, index, backend="triton"),
        "torch": lambda: merge_tokens(text, visual, index, backend="torch"),
        "compile": lambda: plain(text, visual, index),
    }
    if backward:
        ways = {w: forward_backward(f, [text, visual]) for w, f in ways.items() if CUDA or w != "triton"}
    moved = 2 * 2 * rows * width  # every row of the result read once and written once, 2 bytes an element
    moved += (2 * rows + rows // 2) * width * 2 if backward else 0  # its gradient read, both inputs' written
    return _timed("merge_tokens", f"{rows} x {width}{', backward too' if backward else ''}", moved, 0, ways)


def _deformable(tiles: int, side: int, heads: int, d: int, levels: int, backward: bool) -> dict[str, Any]:
    """Queries and maps of one grid, four points a head and level, most of them within a few cells of the query."""
    cells, shapes, points = side * side, [(side, side)] * levels, 4
    values = torch.randn(tiles, cells * levels, heads, d, dtype=torch.bfloat16, device=DEVICE, requires_grad=backward)
    centres = (torch.cartesian_prod(*[torch.arange(side, device=DEVICE)] * 2).flip(-1) + 0.5)[:, None, None, None]
    places = centres + 3 * torch.randn(tiles, cells, heads, levels, points, 2, device=DEVICE)
    locations = (places / side).requires_grad_(backward)
    weights = torch.rand(places.shape[:-1], device=DEVICE).div_(levels * points).requires_grad_(backward)
    inputs = [values, locations, weights]
    plain = compiled(lambda *of: deformable_attention(of[0], shapes, *of[1:], backend="torch"))
    ways: Twins = {
        "triton": lambda: deformable_attention(values, shapes, locations, weights, backend="triton"),
        "torch": lambda: deformable_attention(values, shapes, locations, weights, backend="torch"),
        "compile": lambda: plain(*inputs),
    }
    if backward:
        ways = {w: forward_backward(f, inputs) for w, f in ways.items() if CUDA or w != "triton"}
    read, out = sum(each.numel() * each.element_size() for each in inputs), tiles * cells * heads * d * 2
    moved = (
        read + out + (2 * read + out if backward else 0)
    )  # backward: inputs and the result's gradient, three written
    size = f"{tiles} tiles, {levels} maps of {side} x {side} x {heads * d}{', backward too' if backward else ''}"
    return _timed("deformable_attention", size, moved, 0, ways)


def _nearest(points: int, centroids: int, width: int) -> dict[str, Any]:
    rows, keys = (torch.randn(n, width, dtype=torch.bfloat16, device=DEVICE) for n in (points, centroids))
    best = compiled(lambda block, across: (block.float() @ across).max(dim=1))

    def by_blocks() -> None:  # compiled whole, its loop would be unrolled a thousand times
        across = keys.float().T
        for block in rows.split(POINTS_AT_ONCE)[: points // POINTS_AT_ONCE or 1]:
            best(block, across)

    twins: Twins = {
        "triton": lambda: nearest_centroids(rows, keys, backend="triton"),
        "torch": lambda: nearest_centroids_torch(rows, keys, 1),
        "compile": by_blocks,
    }
    moved, products = 2 * width * (points + centroids), 2 * points * centroids * width
    return _timed("nearest_centroids", f"{points} x {centroids} x {width}", moved, products, twins)
