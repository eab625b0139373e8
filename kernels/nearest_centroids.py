"""The centroids nearest to each point, by inner product: k-means' assignment step, without a matrix of all products."""

from __future__ import annotations

import torch

from .dispatch import Backend, use_triton

POINTS_AT_ONCE = 1024  # rows of the product matrix in memory: 1024 x 50,000 centroids are 200 MB in float32
MOST_WANTED = 32


def nearest_centroids(
    points: torch.Tensor, centroids: torch.Tensor, wanted: int = 1, *, backend: Backend = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each point the `wanted` centroids with the largest inner products, best first.

    `points` [n, d] and `centroids` [k, d] are of one dtype; at unit length the inner product is the cosine. Returns
    indices int64 [n, wanted] and products float32 [n, wanted], summed in float32. Equal products go to the lower index.
    For Euclidean distance give centroids with -|c|^2 / 2 appended, and points with 1 appended. Raises ValueError for
    shapes or dtypes that do not fit, and for wanted outside 1..min(k, 32).
    """
    _check(points, centroids, wanted)
    if use_triton(points, backend):
        from .nearest_centroids_triton import nearest_centroids_triton

        return nearest_centroids_triton(points, centroids, wanted)
    return nearest_centroids_torch(points, centroids, wanted)


def nearest_centroids_torch(
    points: torch.Tensor, centroids: torch.Tensor, wanted: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference, in plain torch, some rows of the product matrix at a time."""
    indices = torch.empty(len(points), wanted, dtype=torch.int64, device=points.device)
    products = torch.empty(len(points), wanted, dtype=torch.float32, device=points.device)
    keys = centroids.float().T
    for start in range(0, len(points), POINTS_AT_ONCE):
        block = slice(start, start + POINTS_AT_ONCE)
        products[block], indices[block] = _best(points[block].float() @ keys, wanted)
    return indices, products


def _best(products: torch.Tensor, wanted: int) -> tuple[torch.Tensor, torch.Tensor]:
    if wanted == 1:  # max gives the first of equals; topk does not promise to
        best = products.max(dim=1, keepdim=True)
        return best.values, best.indices
    values, order = products.sort(dim=1, descending=True, stable=True)
    return values[:, :wanted], order[:, :wanted]


def _check(points: torch.Tensor, centroids: torch.Tensor, wanted: int) -> None:
    fits = points.dim() == 2 and centroids.dim() == 2 and points.shape[1] == centroids.shape[1]
    if not fits or points.dtype != centroids.dtype:
        raise ValueError(
            f"points {tuple(points.shape)} of {points.dtype} and centroids {tuple(centroids.shape)} of "
            f"{centroids.dtype} are not rows of one width and dtype"
        )
    most = min(len(centroids), MOST_WANTED)
    if not 1 <= wanted <= most:
        raise ValueError(f"{wanted} nearest of {len(centroids)} centroids: give 1 to {most}")
