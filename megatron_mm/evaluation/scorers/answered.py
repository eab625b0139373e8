"""What a scorer is given: an item's rows, the answers to them, and the library's task. Loads no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..benchmarks.table import Metric


class Task(Protocol):
    """What is used of an lmms-eval task."""

    def process_results(self, doc: Any, results: list[str]) -> dict[str, Any]:
        """The task's metrics of one row, by key."""

    def aggregation(self) -> Mapping[str, Any]:
        """What makes a score of many such metrics, by key."""


@dataclasses.dataclass(frozen=True)
class Answered:
    """One item: its rows (one, unless the benchmark joins several) and an answer to each."""

    task: Task
    metric: Metric
    rows: Sequence[dict[str, Any]]
    answers: Sequence[str]

    def results(self) -> list[tuple[str, Any]]:
        """The metric's key and value of every row, as the library's task gives them; raises KeyError without one."""
        keys = [self.metric.key, *self.metric.also]
        found = []
        for row, answer in zip(self.rows, self.answers, strict=True):
            told = self.task.process_results(row, [answer])
            key = next((key for key in keys if key in told), keys[0])
            found.append((key, told[key]))
        return found
