"""The assignment step: each row's nearest centroid, by FAISS or by this project's kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

Engine = Literal["auto", "faiss", "kernel"]
Search = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # unit rows [n, d] -> centroid int64 [n], cosine float32

# Loading torch takes a few seconds, in which FAISS has gone some times through this many comparisons of 768 dimensions.
SMALL = 10**7


def searcher(centroids: np.ndarray, engine: Engine, rows: int) -> Search:
    """How to search `centroids` float32 [k, d] of unit length for the nearest to each of about `rows` rows.

    `auto` is the kernel (Triton on a GPU, torch on the CPU, where it is faster than FAISS: benchmarks/kmeans.md), or
    FAISS where loading torch would take longer than the whole search. Equal cosines go to the lower index.
    """
    if engine == "auto":
        engine = "faiss" if rows * len(centroids) < SMALL else "kernel"
    return SEARCHES[engine](np.ascontiguousarray(centroids, dtype=np.float32))


def faiss_search(centroids: np.ndarray) -> Search:
    """FAISS's flat index, on all GPUs where faiss-gpu is installed."""
    import faiss

    index: Any = faiss.IndexFlatIP(centroids.shape[1])
    if hasattr(faiss, "index_cpu_to_all_gpus") and faiss.get_num_gpus():
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(centroids)

    def search(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cosines, indices = index.search(np.ascontiguousarray(rows, dtype=np.float32), 1)
        return indices[:, 0], cosines[:, 0]

    return search


def kernel_search(centroids: np.ndarray) -> Search:
    """kernels/nearest_centroids.py, on the GPU where torch sees one."""
    import torch

    from megavlm.kernels.nearest_centroids import nearest_centroids

    device = "cuda" if torch.cuda.is_available() else "cpu"
    keys = torch.from_numpy(centroids).to(device)

    def search(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        points = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32)).to(device)
        indices, cosines = nearest_centroids(points, keys)
        return indices[:, 0].cpu().numpy(), cosines[:, 0].cpu().numpy()

    return search


SEARCHES: Mapping[str, Callable[[np.ndarray], Search]] = {"faiss": faiss_search, "kernel": kernel_search}
