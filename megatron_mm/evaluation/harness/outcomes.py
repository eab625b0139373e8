"""From lm-eval's records of items to predictions: by the task's own metric, or by running programs in the sandbox."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from megavlm.platform.errors import ConfigError

from ..benchmarks.table import Metric
from ..code import Program, judge_code, program_text
from ..predictions import Prediction

Sample = dict[str, Any]  # doc_id, doc, target, arguments, resps, filtered_resps, metrics and their values
Problems = Mapping[tuple[str, int], str]  # task and document -> why it could not be asked
CHOOSE = "choose one like exact_match or acc"
# What lm-eval divides a choice's log-probability by, where not by 1.
LENGTHS: dict[str, Callable[[str], int]] = {"acc_norm": len, "acc_bytes": lambda choice: len(choice.encode())}


def by_metric(
    name: str, task: Any, samples: Sequence[Sample], metric: Metric | None, problems: Problems
) -> list[Prediction]:
    """A prediction for each of a task's items, judged by `metric`, or the task's first one.

    Raises ConfigError for a metric that gives an item no number in [0, 1].
    """
    title = task.config.task_alias or name
    found = []
    for sample in samples:
        key = _key(name, task, sample, metric)
        value = _value(name, key, sample[key], metric.scale if metric else 1.0)
        problem = problems.get((name, sample["doc_id"]), "")
        answer, expected = _texts(task, key, sample)
        found.append(
            Prediction(
                id=f"{name}/{sample['doc_id']}",
                kind=title,
                correct=value == 1.0 and not problem,
                answer=answer,
                expected=expected,
                problem=problem,
                score=None if value in (0.0, 1.0) or problem else value,
            )
        )
    return found


def by_running(
    name: str, task: Any, samples: Sequence[Sample], problems: Problems, alive: Callable[[], object]
) -> list[Prediction]:
    """The same for answers that are programs: each with its item's tests, in the sandbox alone."""
    outcomes = judge_code([_program(name, sample) for sample in samples], alive=alive)
    found = []
    for sample, outcome in zip(samples, outcomes, strict=True):
        problem = problems.get((name, sample["doc_id"]), "")
        passed = outcome.passed and not problem
        title = task.config.task_alias or name
        expected = str(sample["target"])
        found.append(Prediction(outcome.id, title, passed, sample["resps"][0][0], expected, problem))
    return found


def _program(name: str, sample: Sample) -> Program:
    doc, answer = sample["doc"], sample["resps"][0][0]
    prompt, entry = str(doc.get("prompt", "")), str(doc.get("entry_point", ""))
    text = program_text(prompt, answer, entry)
    return Program(f"{name}/{sample['doc_id']}", text, str(sample["target"]), given=prompt, entry_point=entry)


def _key(name: str, task: Any, sample: Sample, metric: Metric | None) -> str:
    keys = sample["metrics"]
    wanted = metric.key if metric else keys[0]
    if wanted not in keys:
        raise ConfigError(f"task {name} has no metric {wanted}", fix=f"it has: {', '.join(keys)}")
    if not task.higher_is_better().get(wanted, True):
        raise ConfigError(f"metric {wanted} of task {name} is no share of rightness: lower is better", fix=CHOOSE)
    return wanted


def _value(name: str, key: str, told: Any, scale: float) -> float:
    """An item's share of rightness."""
    number = told / scale if isinstance(told, int | float) else math.nan
    if not 0 <= number <= 1:
        what = f"metric {key} of task {name} says {told!r} of an item, which is no share of rightness"
        raise ConfigError(what, fix=CHOOSE)
    return float(number)


def _texts(task: Any, key: str, sample: Sample) -> tuple[str, str]:
    """What the model said, and what was wanted."""
    if task.get_config("output_type") != "multiple_choice":
        said = sample["resps"][0][0]
        return said if isinstance(said, str) else str(bool(said[1])), str(sample["target"])
    choices = task.doc_to_choice(sample["doc"])
    length = LENGTHS.get(key, lambda choice: 1)
    likely = [told[0] / max(length(choice), 1) for told, choice in zip(sample["filtered_resps"], choices, strict=False)]
    target = task.doc_to_text(sample["doc"]) if task.multiple_input else sample["target"]
    expected = choices[target] if isinstance(target, int) and target < len(choices) else str(target)
    return choices[max(range(len(likely)), key=likely.__getitem__)], expected
