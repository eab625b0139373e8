"""Chance: what a model scores that looks at nothing but the question's type."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from megavlm.platform.errors import InputError


def best_constant_answers(items: Iterable[tuple[str, str]]) -> dict[str, tuple[str, float]]:
    """(kind, expected) pairs -> kind -> (most frequent answer, its share of the kind's items).

    Ties go to the answer that is first in the alphabet, so that the result does not depend on the items' order.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for kind, expected in items:
        counts[kind][expected] += 1
    best = {kind: min(counter.items(), key=lambda pair: (-pair[1], pair[0])) for kind, counter in counts.items()}
    return {kind: (answer, count / counts[kind].total()) for kind, (answer, count) in sorted(best.items())}


def chance_accuracy(items: Iterable[tuple[str, str]]) -> float:
    """Accuracy of the best constant answer of each kind, averaged over items; raises InputError without items.

    The constants are chosen on the same items that they are scored on, so this bounds what blind guessing gets.
    """
    items = list(items)
    if not items:
        raise InputError("no items to compute chance of", fix="name a held-out set with samples in it")
    share = {kind: best for kind, (_, best) in best_constant_answers(items).items()}
    return sum(share[kind] for kind, _ in items) / len(items)
