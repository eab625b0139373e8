"""Where K-means starts."""

from __future__ import annotations

import numpy as np

from .lloyd import Fit
from .nearest import Engine, searcher
from .rows import Rows

ROUNDS = 16


def random_rows(rows: Rows, clusters: int, seed: int) -> Fit:
    """`clusters` different rows drawn by the seed, which is how FAISS starts."""
    return Fit(rows.take(np.sort(np.random.default_rng(seed).choice(rows.total, clusters, replace=False))))


def spread_rows(rows: Rows, clusters: int, seed: int, engine: Engine = "auto") -> Fit:
    """Rows drawn in ROUNDS lots, each row's chance being its squared distance from those drawn before.

    k-means++ draws one at a time; drawing a lot at a time costs one pass over the rows for each lot, as in k-means||
    (arXiv 1203.6402). Rare kinds of rows get centroids of their own, which a uniform draw gives them seldom.
    """
    rng = np.random.default_rng(seed)
    chosen, far = np.empty(0, np.int64), np.ones(rows.total)
    for lot in np.array_split(np.arange(clusters), min(ROUNDS, clusters)):
        new = _draw(rng, far, len(lot), chosen)
        chosen = np.append(chosen, new)
        search = searcher(rows.take(np.sort(new)), engine, rows.total)
        cosines = np.concatenate([search(block)[1] for block in rows.blocks()])
        far = np.minimum(far if len(chosen) > len(lot) else np.inf, np.maximum(0.0, 2.0 - 2.0 * cosines))
        far[chosen] = 0.0
    return Fit(rows.take(np.sort(chosen)))


def _draw(rng: np.random.Generator, weights: np.ndarray, count: int, taken: np.ndarray) -> np.ndarray:
    """`count` different indices not in `taken`, by weight; where too few have any, the rest is drawn uniformly."""
    some = np.flatnonzero(weights > 0)
    by_weight = min(count, len(some))
    shares = weights[some] / weights[some].sum() if len(some) else None
    drawn = rng.choice(some, by_weight, replace=False, p=shares) if by_weight else np.empty(0, np.int64)
    left = (
        np.setdiff1d(np.arange(len(weights)), np.append(taken, drawn)) if by_weight < count else np.empty(0, np.int64)
    )
    return np.append(drawn, rng.choice(left, count - by_weight, replace=False)).astype(np.int64)
