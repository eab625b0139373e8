"""Finding duplicate pairs and deciding which member of a pair stays. Pure functions of arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from .hashing import near_pairs


@dataclasses.dataclass
class Pair:
    """Two images i < j that some method calls duplicates."""

    found_by: list[str] = dataclasses.field(default_factory=list)  # of "exact", "hash", "features"
    hash_distance: int | None = None  # differing bits of 256
    cosine: float | None = None


class Pairs(dict[tuple[int, int], Pair]):
    """(i, j), i < j -> how the pair was found."""

    def add(self, i: int, j: int, method: str, **measured: float) -> None:
        """Note that `method` found the pair, and what it measured."""
        pair = self.setdefault((i, j), Pair())
        pair.found_by.append(method)
        for name, value in measured.items():
            setattr(pair, name, value)

    def count(self, method: str) -> int:
        """Pairs that `method` found, alone or among others."""
        return sum(method in pair.found_by for pair in self.values())

    def array(self) -> np.ndarray:
        """int64 [m, 2]."""
        return np.array([*self], dtype=np.int64).reshape(-1, 2)


BLOCK = 4096  # rows of a cosine matrix computed at once: 64 MB per block of 4096 x 4096


def exact_pairs(digests: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(i, j), i < j, for every image whose file equals an earlier one's; j is paired with the first of its kind."""
    first: dict[str, int] = {}
    for index, digest in enumerate(digests):
        earlier = first.setdefault(digest, index)
        if earlier != index:
            yield earlier, index


def hash_pairs(
    hashes: np.ndarray, quality: np.ndarray, radius: int, min_quality: int
) -> Iterator[tuple[int, int, int]]:
    """(i, j, distance in bits), i < j, for uint8 [n, 32] hashes within `radius`; low-quality hashes are left out."""
    usable = np.flatnonzero(quality >= min_quality)
    pairs, distances = near_pairs(hashes[usable], radius)
    for (i, j), distance in zip(usable[pairs], distances, strict=True):
        yield int(i), int(j), int(distance)


def feature_pairs(features: np.ndarray, clusters: np.ndarray, min_cosine: float) -> Iterator[tuple[int, int, float]]:
    """(i, j, cosine), i < j, for unit rows [n, d] of one cluster with a cosine of at least `min_cosine` (SemDeDup)."""
    for members in members_of(clusters):
        yield from _pairs_of_one(features, members, min_cosine)


def members_of(clusters: np.ndarray) -> list[np.ndarray]:
    """Indices of each cluster's images, rising within a cluster; empty clusters are left out."""
    order = np.argsort(clusters, kind="stable")
    starts = np.flatnonzero(np.diff(clusters[order], prepend=-1))
    return np.split(order, starts[1:]) if len(order) else []


def _pairs_of_one(features: np.ndarray, members: np.ndarray, min_cosine: float) -> Iterator[tuple[int, int, float]]:
    for top in range(0, len(members), BLOCK):
        for left in range(0, top + 1, BLOCK):
            rows, columns = members[top : top + BLOCK], members[left : left + BLOCK]
            cosines = features[rows] @ features[columns].T
            for r, c in zip(*np.nonzero(cosines >= min_cosine), strict=True):
                if columns[c] < rows[r]:  # members stand in rising order, so each pair is met once
                    yield int(columns[c]), int(rows[r]), float(cosines[r, c])


def earlier_neighbour(pairs: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """For each image the best-ranked image it is paired with, if that one ranks before it; else -1. int64 [n].

    SemDeDup's rule: whoever resembles an image that ranks earlier is dropped, even when that one is dropped as well. So
    the first of every chain of duplicates stays. `pairs` int64 [m, 2]; `rank` int64 [n], all different, 0 first.
    """
    best = np.full(len(rank), -1, dtype=np.int64)
    best_rank = rank.copy()
    for a, b in pairs:
        winner, loser = (a, b) if rank[a] < rank[b] else (b, a)
        if rank[winner] < best_rank[loser]:
            best[loser], best_rank[loser] = winner, rank[winner]
    return best
