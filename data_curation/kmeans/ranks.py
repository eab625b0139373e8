"""Places within clusters."""

from __future__ import annotations

import numpy as np


def ranks_in_cluster(clusters: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    """Place of each image in its cluster by falling cosine, ties in order of appearance: int64 [n]."""
    order = np.lexsort((np.arange(len(clusters)), -cosines.astype(np.float64), clusters))
    by_cluster = clusters[order]
    starts = np.flatnonzero(np.diff(by_cluster, prepend=-1))
    first_of = np.repeat(starts, np.diff(np.append(starts, len(order))))
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order)) - first_of
    return ranks
