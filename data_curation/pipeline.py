"""The driver: stage after stage, hand the tasks that are not done to the executor, and go on when all are."""

from __future__ import annotations

import contextlib
import fcntl
import re
import time
from collections.abc import Iterator, Sequence

from megavlm.platform.errors import InputError, MegaVLMError, SavedResumable
from megavlm.platform.executor import EXECUTORS, Job, failures
from megavlm.platform.runs import Attempt, SaveRequest

from .fingerprint import stage_fingerprints, task_fingerprint
from .funnel import write_funnel, write_rejected
from .run import CurationRun
from .stages.base import Stage


def curate(run: CurationRun) -> None:
    """Bring a run to its end from wherever it stands.

    Raises MegaVLMError when a task failed (its log is named), InputError when another process drives the same run, and
    SavedResumable when USR1 or TERM asked to stop: everything done so far is in the ledger already.
    """
    with _only_driver(run), run.folder.new_attempt() as attempt, SaveRequest(attempt) as request:
        run.plan()
        for stage in run.config.stages:
            if request.requested:
                run.folder.mark_saved(0)
                raise SavedResumable(f"stopped before stage '{stage.name}'", fix="the same command goes on from here")
            _bring_up(run, stage, attempt)
        write_rejected(run)
        write_funnel(run)
        run.folder.mark_finished()


def pending_tasks(run: CurationRun, stage: Stage) -> list[int]:
    """Tasks of a stage without a valid marker. The stages before it must be complete."""
    stage_hash = stage_fingerprints(run)[stage.name]
    tasks = range(stage.tasks(run))
    return [t for t in tasks if not run.ledger.done(stage.name, t, task_fingerprint(run, stage.name, t, stage_hash))]


def work(run: CurationRun, stage_name: str, tasks: Sequence[int]) -> None:
    """Do tasks of one stage in this process and mark each one; those with a valid marker are left alone."""
    stage = run.config.stages[stage_name]
    stage_hash = stage_fingerprints(run)[stage_name]
    total = stage.tasks(run)
    if beyond := [task for task in tasks if task >= total]:
        raise InputError(f"stage '{stage_name}' has no task {beyond[0]}", fix=f"tasks are 0 to {total - 1}")
    prints = {task: task_fingerprint(run, stage_name, task, stage_hash) for task in tasks}
    todo = [task for task in tasks if not run.ledger.done(stage_name, task, prints[task])]
    worker = stage.worker(run) if todo else None
    for task in todo:
        started = time.monotonic()
        assert worker is not None
        run.ledger.unmark(stage_name, task)
        outcome = worker(task)
        run.ledger.mark(stage_name, task, prints[task], outcome, time.monotonic() - started)


def _bring_up(run: CurationRun, stage: Stage, attempt: Attempt) -> None:
    pending = pending_tasks(run, stage)
    started = time.monotonic()
    if pending:
        run.folder.path("finished").unlink(missing_ok=True)
        attempt.event("stage", name=stage.name, pending=len(pending), tasks=stage.tasks(run))
        choice = run.config.executor
        commands = [_command(run, stage, group) for group in groups(pending, choice.tasks_per_command)]
        # a third party's stage is called "module:object", which is no file name
        job = Job("curate-" + re.sub(r"[^\w.-]", "-", stage.name), commands, attempt.logs)
        failed = failures(EXECUTORS.load(choice.name)().run(job, workers=choice.workers))
        if failed:
            raise MegaVLMError(
                f"stage '{stage.name}': {len(failed)} of {len(commands)} commands failed\n{failed[0].tail(5)}",
                where=str(failed[0].log),
                fix="mend the cause and run the same command: finished tasks are not done again",
            )
        run.folder.append_metrics({"stage": stage.name, "tasks": len(pending), "seconds": time.monotonic() - started})
    stage.finish(run)


def _command(run: CurationRun, stage: Stage, tasks: Sequence[int]) -> list[str]:
    return [
        "curate",
        "worker",
        str(run.folder.root.resolve()),
        "--stage",
        stage.name,
        "--task",
        ",".join(map(str, tasks)),
    ]


def groups(tasks: Sequence[int], size: int) -> list[Sequence[int]]:
    """Consecutive groups of at most `size`."""
    return [tasks[start : start + size] for start in range(0, len(tasks), size)]


@contextlib.contextmanager
def _only_driver(run: CurationRun) -> Iterator[None]:
    """A lock that the kernel drops with the process, however it ends."""
    path = run.folder.path("ledger", "driver.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError("another `megavlm curate run` drives this run", where=str(run.folder.root)) from None
        yield
