"""The worker: do some tasks of one stage in this process. What executors start, and what a person may start by hand."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Sequence

from megavlm.platform.errors import InputError, MegaVLMError

from .fingerprint import task_fingerprints
from .ledger import Line
from .run import CurationRun
from .stages.base import Stage, Worker


def work(run: CurationRun, stage_name: str, tasks: Sequence[int]) -> None:
    """Do tasks of one stage in this process and mark each one; those that are done are left alone.

    A task that fails stops no other one. Raises MegaVLMError at the end, naming those that did.
    """
    stage = run.config.stages[stage_name]
    total = stage.tasks(run)
    if beyond := [task for task in tasks if task >= total]:
        raise InputError(f"stage '{stage_name}' has no task {beyond[0]}", fix=f"tasks are 0 to {total - 1}")
    prints = task_fingerprints(run, stage_name, tasks)
    known = run.ledger.state(stage_name, prints)
    last = {task: known.get(task, Line(task)) for task in prints}
    todo = [task for task in prints if last[task].fingerprint != prints[task]]
    if not todo:
        return
    failed = {}
    with stage.at_work(run, todo) as worker:
        for task in todo:
            try:
                _do(run, stage_name, worker, last[task], prints[task])
            except Exception as error:
                failed[task] = error
                _tell(stage_name, _name(run, stage, task), error)
    if failed:
        names = ", ".join(_name(run, stage, task) for task in failed)
        first = next(iter(failed.values()))
        what = f"stage '{stage_name}': {len(failed)} of {len(todo)} tasks failed: {names}"
        raise MegaVLMError(f"{what}\n{_reason(first)}", fix=getattr(first, "fix", None)) from first


def _do(run: CurationRun, stage: str, worker: Worker, last: Line, fingerprint: str) -> None:
    started = time.monotonic()
    last = run.ledger.withdraw(stage, last)
    outcome = worker(last.task)
    run.ledger.mark(stage, last, fingerprint, outcome, time.monotonic() - started)


def _name(run: CurationRun, stage: Stage, task: int) -> str:
    """What a person calls a task."""
    return run.plan.names[task] if stage.per_shard else f"task {task}"


def _reason(error: Exception) -> str:
    return error.what if isinstance(error, MegaVLMError) else f"{type(error).__name__}: {error}"


def _tell(stage: str, name: str, error: Exception) -> None:
    """A task's error at once and whole; the others go on meanwhile."""
    expected = isinstance(error, MegaVLMError)
    text = str(error) if expected else "".join(traceback.format_exception(error)).rstrip()
    print(f"stage '{stage}', {name}: {text}", file=sys.stderr)
