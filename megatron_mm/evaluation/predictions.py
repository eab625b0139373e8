"""Predictions: what a model answered to every item of a suite, as one JSON line each. Loads no torch.

Beside SUITE.jsonl stands SUITE.about.json: how it was asked. Answers to other questions are not compared.
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from megavlm.platform.errors import InputError
from megavlm.platform.storage import write_atomic

EVALUATE = "run `megavlm eval` for this stage"
AGAIN = "evaluate again with --fresh"


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One item's outcome.

    `kind` is the question type; `correct` means that the answer is fully right (in a held-out set: that greedy decoding
    gives exactly `expected`); `answer` is what the model says; `problem` is the reason of an item that could not be
    shown to the model (it counts as wrong); `score` in [0, 1] is the metric's share of rightness where it has shares.
    """

    id: str
    kind: str
    correct: bool
    answer: str
    expected: str
    problem: str = ""
    score: float | None = None

    @property
    def value(self) -> float:
        """What the item adds to its suite's score, in [0, 1]."""
        return float(self.correct) if self.score is None else self.score


@dataclasses.dataclass(frozen=True)
class About:
    """How a suite was asked: two files of predictions are compared only where all of it agrees, but for the engine."""

    suite: str
    metric: str = "exact match"
    protocol: str = ""
    task: str = ""  # of lm-eval or lmms-eval, with its version
    data: str = ""  # a digest of what was asked
    limit: int | None = None  # the first so many items, where not all
    engine: str = "megatron"

    def differs(self, other: About) -> str:
        """The first of the fields that keep two apart, in words; "" where they may be compared."""
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name != "engine" and mine != theirs:
                return f"{field.name} {mine!r} and {theirs!r}"
        return ""


def write_predictions(path: Path, predictions: Sequence[Prediction], about: About | None = None) -> None:
    """Write the whole file at once, so that a half-written one is never taken for a result; `about` before it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    told = about or About(path.stem)
    write_atomic(about_path(path), json.dumps(dataclasses.asdict(told), indent=2).encode())
    lines = (json.dumps(dataclasses.asdict(item), ensure_ascii=False) + "\n" for item in predictions)
    write_atomic(path, "".join(lines).encode())


def about_path(path: Path) -> Path:
    """Where it stands how the predictions in `path` were asked for."""
    return path.with_suffix(".about.json")


def read_about(path: Path) -> About:
    """How the predictions in `path` were asked for; raises InputError for what cannot be read."""
    try:
        told: dict[str, Any] = json.loads(about_path(path).read_text(encoding="utf-8"))
        return About(**told)
    except OSError:
        return About(path.stem)  # written before there was such a file: a held-out set's
    except (ValueError, TypeError) as error:
        raise InputError(f"not about predictions: {error}", where=str(about_path(path)), fix=AGAIN) from None


def read_predictions(path: Path) -> list[Prediction]:
    """Read what `write_predictions` wrote; raises InputError with the line of anything else."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"no predictions: {error.strerror}", where=str(path), fix=EVALUATE) from None
    return [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def _parse(line: str, where: str) -> Prediction:
    try:
        item = Prediction(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise InputError(f"not a prediction: {error}", where=where, fix=AGAIN) from None
    if not isinstance(item.correct, bool):
        raise InputError(f"correct is {item.correct!r}, neither true nor false", where=where, fix=AGAIN)
    if item.score is not None and not (isinstance(item.score, int | float) and 0 <= item.score <= 1):
        raise InputError(f"score is {item.score!r}, no share of rightness", where=where, fix=AGAIN)
    return item


def accuracy(predictions: Sequence[Prediction]) -> float:
    """Mean value of the items: where the metric is right or wrong, the share answered right. InputError without any."""
    if not predictions:
        raise InputError("no items to compute an accuracy of", fix="name a held-out set with samples in it")
    return sum(item.value for item in predictions) / len(predictions)


def accuracy_by_kind(predictions: Iterable[Prediction]) -> dict[str, float]:
    """Accuracy of every question type, in the order of first appearance."""
    groups: dict[str, list[Prediction]] = defaultdict(list)
    for item in predictions:
        groups[item.kind].append(item)
    return {kind: accuracy(items) for kind, items in groups.items()}
