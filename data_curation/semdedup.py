"""SemDeDup inside one cluster (arXiv 2303.09540): which images go, each with the one it goes for.

Rows come in the order of who stays, so that "earlier" means "rather kept". Both rules look at blocks of rows, so that
memory is the cluster's features and one tile of cosines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

BLOCK = 2048  # rows and columns of a tile: 16 MB of cosines
Confirm = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (rows, columns) of pairs -> which of them count
Rule = Callable[[np.ndarray, float, Confirm | None], np.ndarray]


def code_rule(points: np.ndarray, epsilon: float, confirm: Confirm | None = None) -> np.ndarray:
    """The published code's rule: an image goes when its cosine to any earlier one is above 1 - epsilon.

    It goes even when that one goes as well. `points` are unit rows float32 [n, d]. Returns for each row the first
    earlier one that it resembles, or -1: int64 [n]. Rows that go are not compared with later blocks, so that a cluster
    of a hundred thousand equal icons costs one.
    """
    earlier = np.full(len(points), -1, np.int64)
    waiting = np.arange(1, len(points))
    for top in range(0, len(points), BLOCK):
        waiting = waiting[waiting > top]
        rest = []
        for start in range(0, len(waiting), BLOCK):
            columns = waiting[start : start + BLOCK]
            rows, hits = _hits(points, top, columns, lambda cosines: cosines > 1 - epsilon, confirm)
            earlier[columns[hits[::-1]]] = rows[::-1]  # hits come by rising row, and the first is to be written last
            rest.append(columns[earlier[columns] < 0])
        waiting = np.concatenate(rest) if rest else waiting
    return earlier


def paper_rule(points: np.ndarray, epsilon: float, confirm: Confirm | None = None) -> np.ndarray:
    """The paper's rule (section 3): of each group of images linked by cosines of at least 1 - epsilon the first stays.

    A group is everything that pairs link, however long the chain, so at least as much goes as by the code's rule.
    Returns for each row its group's first one, or -1 for that one itself: int64 [n].
    """
    first = np.arange(len(points))
    for top in range(0, len(points), BLOCK):
        links = [(np.arange(len(points)), first)]
        for start in range(top, len(points), BLOCK):
            columns = np.arange(start, min(start + BLOCK, len(points)))
            rows, hits = _hits(points, top, columns, lambda cosines: cosines >= 1 - epsilon, confirm)
            links.append(_fewer(rows, columns[hits]))
        first = _firsts(len(points), *map(np.concatenate, zip(*links, strict=True)))
    return np.where(first < np.arange(len(points)), first, -1)


def _hits(
    points: np.ndarray, top: int, columns: np.ndarray, near: Callable[[np.ndarray], np.ndarray], confirm: Confirm | None
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of the block of rows from `top` with later ones of `columns`: (rows, places in columns), by rising row."""
    rows = np.arange(top, min(top + BLOCK, len(points)))
    close = near(points[rows] @ points[columns].T) & (rows[:, None] < columns)
    first, second = np.nonzero(close)
    first = first + top
    if confirm is not None:
        counts = confirm(first, columns[second])
        first, second = first[counts], second[counts]
    return first, second


def _fewer(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most as many links as there are different ends, which connect the same."""
    ends, places = np.unique(np.concatenate([a, b]), return_inverse=True)
    half = len(a)
    return ends, ends[_firsts(len(ends), places[:half], places[half:])]


def _firsts(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """For each of 0..count - 1 the lowest one it is connected with by the links (a, b)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    _, labels = connected_components(coo_array((np.ones(len(a), bool), (a, b)), (count, count)), directed=False)
    _, lowest = np.unique(labels, return_index=True)
    return np.asarray(lowest[labels], dtype=np.int64)


RULES: Mapping[str, Rule] = {"code": code_rule, "paper": paper_rule}


def interpolated(wanted: float, epsilons: tuple[float, float], kept: tuple[float, float]) -> float:
    """The epsilon at which a line through two trials keeps the share `wanted`, as the paper chooses it; at least 0."""
    slope = (epsilons[1] - epsilons[0]) / (kept[1] - kept[0])
    return max(0.0, epsilons[0] + slope * (wanted - kept[0]))
