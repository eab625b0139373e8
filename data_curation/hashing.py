"""Hashes: SHA-256 for equal files, Facebook's PDQ for images that look the same (256 bits; arXiv 1912.07745)."""

from __future__ import annotations

import hashlib

import numpy as np

BITS = 256


def exact_hash(data: bytes) -> str:
    """SHA-256 of a file's bytes, as hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def perceptual_hash(image: np.ndarray) -> tuple[bytes, int]:
    """PDQ of an RGB image uint8 [H, W, 3]: 32 bytes, and PDQ's quality 0..100 (low: too few gradients)."""
    import pdqhash

    bits, quality = pdqhash.compute(np.ascontiguousarray(image))
    return np.packbits(np.asarray(bits, dtype=np.uint8)).tobytes(), int(quality)


def distance(a: np.ndarray, b: np.ndarray) -> int:
    """Differing bits of two hashes uint8 [32]."""
    return int(np.bitwise_count(a ^ b).sum())


def near_pairs(hashes: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of hashes within a Hamming distance of `radius` bits (inclusive).

    `hashes` is uint8 [n, 32]; returns pairs int64 [m, 2] with first < second, sorted, and distances int64 [m].
    Exhaustive (FAISS IndexBinaryFlat): exact, and quadratic in n.
    """
    import faiss

    if len(hashes) == 0:
        return np.empty((0, 2), np.int64), np.empty(0, np.int64)
    index = faiss.IndexBinaryFlat(8 * hashes.shape[1])
    index.add(np.ascontiguousarray(hashes))
    limits, distances, neighbours = index.range_search(
        np.ascontiguousarray(hashes), radius + 1
    )  # FAISS: strictly below
    first = np.repeat(np.arange(len(hashes)), limits[1:].astype(np.int64) - limits[:-1].astype(np.int64))
    pairs, distances = np.stack([first, neighbours], axis=1), distances.astype(np.int64)
    once = pairs[:, 0] < pairs[:, 1]
    pairs, distances = pairs[once], distances[once]
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return pairs[order], distances[order]
