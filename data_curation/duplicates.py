"""Equal files and equal-looking images: for each the first one, in the order of who stays, that it duplicates."""

from __future__ import annotations

import numpy as np

QUERIES = 256  # hashes looked up at once: each may be near all others


def equal_earlier(digests: np.ndarray) -> np.ndarray:
    """For uint8 [n, w]: the first row that equals each, or -1 for that one itself. int64 [n]."""
    keys = np.ascontiguousarray(digests).view(f"V{digests.shape[1]}")[:, 0]
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    found = first[inverse.reshape(-1)]
    return np.where(found < np.arange(len(found)), found, -1)


def near_earlier(hashes: np.ndarray, usable: np.ndarray, radius: int) -> np.ndarray:
    """The first earlier row within `radius` bits (inclusive) of each, or -1: int64 [n].

    `hashes` uint8 [n, 32]; rows that are not `usable` (bool [n]) resemble nobody. Exhaustive (FAISS IndexBinaryFlat):
    exact, and quadratic in the number of different hashes.
    """
    earlier = np.full(len(hashes), -1, np.int64)
    rows = np.flatnonzero(usable)
    same = equal_earlier(hashes[rows])
    different = np.flatnonzero(same < 0)
    nearest = _near_earlier(np.ascontiguousarray(hashes[rows[different]]), radius)
    found = np.full(len(rows), -1, np.int64)
    found[different] = np.where(nearest >= 0, different[nearest], -1)
    copies = np.flatnonzero(same >= 0)  # a copy resembles what the first of its kind does, or else that one
    found[copies] = np.where(found[same[copies]] >= 0, found[same[copies]], same[copies])
    earlier[rows] = np.where(found >= 0, rows[found], -1)
    return earlier


def _near_earlier(hashes: np.ndarray, radius: int) -> np.ndarray:
    """The same for hashes that all differ: each block is looked up among those before it and its own."""
    import faiss

    earlier = np.full(len(hashes), -1, np.int64)
    index = faiss.IndexBinaryFlat(8 * hashes.shape[1])
    for start in range(0, len(hashes), QUERIES):
        block = hashes[start : start + QUERIES]
        index.add(block)
        limits, _, found = index.range_search(block, radius + 1)  # FAISS: strictly below; a hash always finds itself
        first = np.minimum.reduceat(found, limits[:-1].astype(np.int64))
        places = np.arange(start, start + len(block))
        earlier[places] = np.where(first < places, first, -1)
    return earlier


def hash_distances(hashes: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Differing bits of pairs of rows of uint8 [n, 32]: int16 [m]."""
    return np.bitwise_count(hashes[a] ^ hashes[b]).sum(axis=1, dtype=np.int16)
