"""Picture benchmarks through lmms-eval: its tasks ask and score, our engine answers, every item is kept.

The library's evaluator gives one number and stops at the first picture it cannot open; here a bad item costs one item.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..benchmarks.present import require
from ..benchmarks.protocols import Protocol
from ..benchmarks.table import Benchmark
from ..engines.base import Ask, Engine, Unanswered
from ..predictions import Prediction
from ..scorers import SCORERS
from ..scorers.answered import Answered
from .lmms_library import quiet
from .lmms_model import engine_model
from .lmms_task import load_task

TOGETHER = 16  # items whose pictures are in memory at once
JOIN = " | "  # between the answers of one item
RIGHT = 1 - 1e-9


@dataclasses.dataclass(frozen=True)
class Item:
    """The rows that count as one, and what they are called."""

    id: str
    rows: tuple[int, ...]


def evaluate_vision(
    engine: Engine,
    benchmark: Benchmark,
    data: Path,
    protocol: Protocol,
    limit: int | None = None,
    alive: Callable[[], object] = lambda: None,
) -> list[Prediction]:
    """Every item's prediction, in the benchmark's order; `limit`: the first so many. `alive` is called between batches.

    Raises InputError with the line to run where data are missing, ConfigError without lmms-eval.
    """
    require([benchmark], data)
    with quiet():
        asked = protocol.of(benchmark)
        judge = Judge(benchmark, load_task(benchmark, data, asked), engine, asked)
        found: list[Prediction] = []
        items = judge.items()[:limit]
        for start in range(0, len(items), TOGETHER):
            alive()
            found += judge.answer(items[start : start + TOGETHER])
        return found


class Judge:
    """One benchmark's task and the engine that answers it."""

    def __init__(self, benchmark: Benchmark, task: Any, engine: Engine, asked: Any) -> None:
        self.benchmark, self.task, self.engine = benchmark, task, engine
        self.rows, self.split = task.test_docs(), task.config.test_split
        self.model = engine_model(engine, asked)
        self.model.task_dict[benchmark.task] = task.dataset
        self.scorer = SCORERS.load(benchmark.metric.scorer)

    def items(self) -> list[Item]:
        """The benchmark's items, in order of their first rows."""
        numbers = range(len(self.rows))
        for column, wanted in self.benchmark.only.items():
            values = self.rows.column(column)
            numbers = [number for number in numbers if str(values[number]) == wanted]  # type: ignore[assignment]
        unit, modulo = self.benchmark.unit, self.benchmark.modulo
        names = self.rows.column(unit) if unit else range(len(self.rows))
        grouped: dict[str, list[int]] = {}
        for number in numbers:
            name = names[number] % modulo if modulo else names[number]
            grouped.setdefault(str(name), []).append(number)
        return [Item(f"{self.benchmark.task}/{name}", tuple(rows)) for name, rows in grouped.items()]

    def answer(self, items: Sequence[Item]) -> list[Prediction]:
        """The predictions of some items, answered together."""
        shown = {item.id: self._shown(item) for item in items}
        asks = [request for requests in shown.values() if isinstance(requests, list) for request in requests]
        answers = iter(self.engine.generate(asks) if asks else [])
        return [self._judged(item, shown[item.id], answers) for item in items]

    def _shown(self, item: Item) -> list[Ask] | str:
        """What an item asks, or why it cannot be shown."""
        try:
            return [self.model.ask_of(self._request(number)) for number in item.rows]
        except Exception as error:  # whatever the task or Pillow make of one row: it costs that row
            return f"cannot be shown: {error!r}"

    def _request(self, number: int) -> Any:
        question = self.task.fewshot_context(self.rows[number], 0)
        metadata = {"task": self.benchmark.task, "doc_id": number, "repeats": 1, "split": self.split}
        return self.task.construct_requests(doc_id=number, ctx=question, metadata=metadata)

    def _judged(self, item: Item, shown: list[Ask] | str, answers: Iterator[str]) -> Prediction:
        if isinstance(shown, str):
            return self._lost(item, shown)
        given = [next(answers) for _ in shown]
        for answer in given:
            if isinstance(answer, Unanswered):
                return self._lost(item, answer.problem)
        try:
            return self._scored(item, given)
        except Exception as error:  # a row that the task itself cannot judge
            return self._lost(item, f"cannot be scored: {error!r}")

    def _scored(self, item: Item, given: list[str]) -> Prediction:
        rows = [self.rows[number] for number in item.rows]
        kept = [self._filtered(row, answer) for row, answer in zip(rows, given, strict=True)]
        value = self.scorer(Answered(self.task, self.benchmark.metric, rows, kept))
        score = value if self.benchmark.metric.shares else None
        kind, told = _or_nothing(self._kind, item), JOIN.join(given)
        return Prediction(item.id, kind, value >= RIGHT, told, self._expected(item), score=score)

    def _filtered(self, row: dict[str, Any], answer: str) -> str:
        """The answer after the task's own filters, without white space around it."""
        kept: Any = [[answer]]
        for step in self.task._filters[0].filters:
            kept = step.apply(kept, [row])
        return str(next(iter(kept))).strip()

    def _expected(self, item: Item) -> str:
        column, target = self.benchmark.answer, self.task.doc_to_target
        rows = [self.rows[number] for number in item.rows]  # scorers change theirs
        return JOIN.join(_words(row[column] if column else target(row)) for row in rows)

    def _kind(self, item: Item) -> str:
        """The item's category: a key of its row, or of what the task says of it."""
        if self.benchmark.kind is None:
            return ""
        found: Any = self.rows[item.rows[0]]
        first, *others = self.benchmark.kind.split(".")
        if first not in found:
            found = self.task.process_results(found, [""])[self.benchmark.metric.key]
        for key in (first, *others):
            found = found[key]
        return _words(found)

    def _lost(self, item: Item, problem: str) -> Prediction:
        """A wrong answer with its reason; what was asked is told as for any other, so that files stay comparable."""
        score = 0.0 if self.benchmark.metric.shares else None
        kind, expected = (_or_nothing(tell, item) for tell in (self._kind, self._expected))
        return Prediction(item.id, kind, False, "", expected, problem=problem, score=score)


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _or_nothing(tell: Callable[[Item], str], item: Item) -> str:
    try:
        return tell(item)
    except Exception:  # a row that does not read, whose problem is told already, or one without a category
        return ""
