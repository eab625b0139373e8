"""Multi-scale deformable attention: each query reads a few points of each map, at fractions of cells.

Deformable DETR (arXiv 2010.04159), section 4.1, equation 3, without its linear layers: those belong to the modules.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .dispatch import Backend, use_triton

Shapes = Sequence[tuple[int, int]]


def deformable_attention(
    values: torch.Tensor, shapes: Shapes, locations: torch.Tensor, weights: torch.Tensor, *, backend: Backend = "auto"
) -> torch.Tensor:
    """Sums of `weights` times what lies at `locations` of each level's map -> [n, queries, heads * d].

    `values` [n, cells, heads, d]: the levels' maps one after the other, level l row-major over `shapes[l]` (rows,
    columns). `locations` [n, queries, heads, levels, points, 2]: (x, y), a map's corners at 0 and 1, so that the first
    cell's centre is at 0.5 / columns. `weights` [n, queries, heads, levels, points], already normalised by the caller.
    Bilinear between cells' centres; beyond the map everything is zero, and any location may lie there. The gradient of
    a location exactly on a row of centres is the one towards the higher coordinate.

    `locations` and `weights` are float32 (float64 where the values are), which is what the arithmetic is done in, and
    the result has the values' dtype. The Triton twin repeats exactly, gradients too. The reference repeats on a CPU;
    on a CUDA device the gradient of grid_sample sums in any order, and torch's deterministic mode refuses it.
    Raises ValueError for shapes or dtypes that do not fit.
    """
    _check(values, shapes, locations, weights)
    if use_triton(values, backend):
        from .deformable_attention_triton import deformable_attention_triton

        return deformable_attention_triton(values, shapes, locations, weights)
    return deformable_attention_torch(values, shapes, locations, weights)


def deformable_attention_torch(
    values: torch.Tensor, shapes: Shapes, locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The reference, in plain torch: grid_sample of each level, all sampled points in memory at once."""
    n, queries, heads, levels, points, _ = locations.shape
    maps = values.to(locations.dtype).split([rows * columns for rows, columns in shapes], dim=1)
    places = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # [n * heads, queries, levels, points, 2]
    sampled = [
        F.grid_sample(_by_head(level, shape), places[:, :, index], mode="bilinear", padding_mode="zeros",
                      align_corners=False)
        for index, (level, shape) in enumerate(zip(maps, shapes, strict=True))
    ]  # fmt: skip
    shares = weights.transpose(1, 2).reshape(n * heads, 1, queries, levels * points)
    summed = (torch.cat(sampled, dim=-1) * shares).sum(-1)  # [n * heads, d, queries]
    return summed.view(n, heads * values.shape[3], queries).transpose(1, 2).to(values.dtype).contiguous()


def _by_head(level: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """[n, rows * columns, heads, d] -> [n * heads, d, rows, columns]."""
    n, _, heads, d = level.shape
    return level.permute(0, 2, 3, 1).reshape(n * heads, d, *shape)


def _check(values: torch.Tensor, shapes: Shapes, locations: torch.Tensor, weights: torch.Tensor) -> None:
    if values.dim() != 4 or values.shape[1] != sum(rows * columns for rows, columns in shapes):
        raise ValueError(f"values {tuple(values.shape)} are not [n, cells, heads, d] of maps {list(shapes)}")
    n, _, heads, _ = values.shape
    given = tuple(locations.shape)
    if len(given) != 6 or (given[0], *given[2:4], given[5]) != (n, heads, len(shapes), 2):
        raise ValueError(f"locations {given} are not [{n}, queries, {heads}, {len(shapes)}, points, 2]")
    if weights.shape != locations.shape[:5]:
        raise ValueError(f"weights {tuple(weights.shape)} are not one to each of locations {given}")
    wanted = torch.float64 if values.dtype == torch.float64 else torch.float32
    if not values.is_floating_point() or {locations.dtype, weights.dtype} != {wanted}:
        raise ValueError(
            f"values of {values.dtype} want locations and weights of {wanted}, not {locations.dtype}, {weights.dtype}"
        )
