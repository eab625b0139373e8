"""Predictions: what a model answered to every item of a suite, as one JSON line each. Loads no torch."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from megavlm.platform.errors import InputError
from megavlm.platform.storage import write_atomic


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One item's outcome.

    `kind` is the question type; `correct` means that greedy decoding gives exactly `expected`; `answer` is what the
    model says; `problem` is the reason of an item that could not be shown to the model (it counts as wrong).
    """

    id: str
    kind: str
    correct: bool
    answer: str
    expected: str
    problem: str = ""


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write the whole file at once, so that a half-written one is never taken for a result."""
    lines = (json.dumps(dataclasses.asdict(item), ensure_ascii=False) + "\n" for item in predictions)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(lines).encode())


def read_predictions(path: Path) -> list[Prediction]:
    """Read what `write_predictions` wrote; raises InputError with the line of anything else."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(
            f"no predictions: {error.strerror}", where=str(path), fix="run `megavlm eval` for this stage"
        ) from None
    return [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def _parse(line: str, where: str) -> Prediction:
    try:
        item = Prediction(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise InputError(f"not a prediction: {error}", where=where, fix="evaluate again with --fresh") from None
    if not isinstance(item.correct, bool):
        raise InputError(
            f"correct is {item.correct!r}, neither true nor false", where=where, fix="evaluate again with --fresh"
        )
    return item


def accuracy(predictions: Sequence[Prediction]) -> float:
    """Share of items answered exactly; raises InputError on an empty list, which has no accuracy."""
    if not predictions:
        raise InputError("no items to compute an accuracy of", fix="name a held-out set with samples in it")
    return sum(item.correct for item in predictions) / len(predictions)


def accuracy_by_kind(predictions: Iterable[Prediction]) -> dict[str, float]:
    """Accuracy of every question type, in the order of first appearance."""
    groups: dict[str, list[Prediction]] = defaultdict(list)
    for item in predictions:
        groups[item.kind].append(item)
    return {kind: accuracy(items) for kind, items in groups.items()}
