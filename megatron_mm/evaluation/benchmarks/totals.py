"""Scores on the scale of the papers' tables, from the items' predictions. Loads no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from ..predictions import Prediction, accuracy
from .table import Benchmark

COGNITION = {"commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"}  # MME's other part


def published_score(benchmark: Benchmark, predictions: Sequence[Prediction]) -> float:
    """What a paper's table would say of these items: percent, or points for OCRBench and MME (perception).

    Raises InputError without items.
    """
    accuracy(predictions)
    return TOTALS[benchmark.total](predictions)


def mean_of(predictions: Sequence[Prediction]) -> float:
    """Percent."""
    return 100 * accuracy(predictions)


def sum_of(predictions: Sequence[Prediction]) -> float:
    """One point for each item: OCRBench has 1,000."""
    return sum(item.value for item in predictions)


def mme_of(predictions: Sequence[Prediction]) -> float:
    """Up to 200 points for each category of perception: accuracy and accuracy+, whose half an item's value is."""
    kinds: dict[str, list[Prediction]] = defaultdict(list)
    for item in predictions:
        kinds[item.kind].append(item)
    return sum(200 * accuracy(items) for kind, items in kinds.items() if kind not in COGNITION)


def f1_of(predictions: Sequence[Prediction]) -> float:
    """F1 of the answer yes over all items, in percent, as lmms-eval gives POPE's."""
    said = [(item.answer.strip().lower() == "yes", item.expected.strip().lower() == "yes") for item in predictions]
    both, wrong = sum(a and b for a, b in said), sum(a != b for a, b in said if a or b)
    return 100 * 2 * both / (2 * both + wrong) if both else 0.0


TOTALS: Mapping[str, Callable[[Sequence[Prediction]], float]] = {
    "mean": mean_of,
    "sum": sum_of,
    "mme": mme_of,
    "f1": f1_of,
}
