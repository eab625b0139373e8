"""lmms-eval's own scorers, item by item."""

from __future__ import annotations

import contextlib
import io

from ..harness import lmms_library
from .answered import Answered


def number(answered: Answered) -> float:
    """The task's metric is a number of each row."""
    values = [float(value) for _, value in answered.results()]
    return sum(values) / len(values) / answered.metric.scale


def aggregated(answered: Answered) -> float:
    """The task's metric is a record: its own aggregation is asked for the score of this one item."""
    results = answered.results()
    aggregate = answered.task.aggregation()[results[0][0]]
    with contextlib.redirect_stdout(io.StringIO()):  # some print a table of every subject
        value = aggregate([value for _, value in results])
    return float(value) / answered.metric.scale


def mmbench(answered: Answered) -> float:
    """MMBench's circular evaluation: 1 where every copy of a question is answered right; letters are found by rules."""
    from pandas import DataFrame

    judge = lmms_library.load("tasks.mmbench.en_utils").mmbench_evaluator
    records = [value for _, value in answered.results()]
    truth = {record["index"]: record["answer"] for record in records}
    return float(judge.eval_sub_data(DataFrame(records), truth, static_only=True))
