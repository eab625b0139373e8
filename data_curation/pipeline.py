"""The driver: stage after stage, hand the tasks that are not done to the executor, and go on when all are."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import re
import time
from collections.abc import Iterator, Sequence

from megavlm.platform.errors import InputError, MegaVLMError, SavedResumable
from megavlm.platform.executor import Executor, Job, failures
from megavlm.platform.runs import Attempt, SaveRequest

from .fingerprint import task_fingerprints
from .funnel import settle, write_funnel, write_rejected
from .run import CurationRun
from .stages.base import Stage

LAG_SECONDS = 60.0  # a network file system may show a new file of another machine so late: as long as NFS keeps folders


def curate(run: CurationRun) -> None:
    """Bring a run to its end from wherever it stands.

    Raises MegaVLMError when a task failed (its log is named), InputError when another process drives the same run,
    ConfigError when its executor cannot be had, and SavedResumable when USR1, TERM or a wish in the attempt's folder
    asked to stop: everything done so far is in the ledger already.
    """
    executor = run.config.executor.make()
    with only_driver(run), run.folder.new_attempt() as attempt, SaveRequest(attempt) as request:
        run.make_plan()
        driver = _Driver(run, executor, attempt, request)
        try:
            for stage in run.config.stages:
                driver.bring_up(stage)
        except SavedResumable:
            run.folder.mark_saved(0)
            raise
        write_rejected(run)
        write_funnel(run)
        run.folder.mark_finished()


def pending_tasks(run: CurationRun, stage: Stage, tasks: Sequence[int] | None = None) -> list[int]:
    """Those of a stage's tasks (all when None) that are not done. The stages before it must be complete."""
    prints = task_fingerprints(run, stage.name, range(stage.tasks(run)) if tasks is None else tasks)
    done = run.ledger.done(stage.name, prints)
    return [task for task in prints if task not in done]


@dataclasses.dataclass(frozen=True)
class _Driver:
    run: CurationRun
    executor: Executor
    attempt: Attempt
    request: SaveRequest

    def bring_up(self, stage: Stage) -> None:
        """Have every task of a stage done."""
        if self.request.requested:
            raise SavedResumable(f"stopped before stage '{stage.name}'", fix="the same command goes on from here")
        run, started = self.run, time.monotonic()
        settle(run, stage.name)
        done = 0
        for tasks in stage.rounds(run):
            if pending := pending_tasks(run, stage, tasks):
                run.folder.path("finished").unlink(missing_ok=True)
                self.attempt.event("stage", name=stage.name, pending=len(pending), tasks=len(tasks))
                self._have_done(stage, pending)
                done += len(pending)
        if done:
            seconds = time.monotonic() - started
            run.folder.append_metrics({"stage": stage.name, "tasks": done, "seconds": seconds})
        stage.finish(run)

    def _have_done(self, stage: Stage, pending: Sequence[int]) -> None:
        choice = self.run.config.executor
        each = 1 if stage.large_tasks else choice.tasks_per_command
        commands = [_command(self.run, stage, group) for group in groups(pending, each)]
        # a third party's stage is called "module:object", which is no file name
        name = "curate-" + re.sub(r"[^\w.-]", "-", stage.name)
        job = Job(name, commands, self.attempt.logs, stop=lambda: self.request.requested)
        failed = failures(self.executor.run(job, workers=choice.workers))
        left = self._left(stage, pending, LAG_SECONDS if not failed else 0.0)
        settle(self.run, stage.name)
        if left:
            told, log = (failed[0].tail(5), failed[0].log) if failed else ("nobody said why", self.attempt.logs)
            raise MegaVLMError(
                f"stage '{stage.name}': {len(left)} of {len(pending)} tasks are not done,"
                f" {len(failed)} of {len(commands)} commands failed\n{told}",
                where=str(log),
                fix="mend the cause and run the same command: finished tasks are not done again",
            )

    def _left(self, stage: Stage, tasks: Sequence[int], patience: float) -> set[int]:
        """Those of the tasks that are not done, looked for again while they may be on their way from other machines."""
        prints, end = task_fingerprints(self.run, stage.name, tasks), time.monotonic() + patience
        while left := prints.keys() - self.run.ledger.done(stage.name, prints):
            if time.monotonic() > end:
                break
            time.sleep(1.0)
        return left


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
def only_driver(run: CurationRun) -> Iterator[None]:
    """A lock that the kernel drops with the process, however it ends; raises InputError when another process has it."""
    path = run.folder.path("ledger", "driver.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError("another `megavlm curate run` drives this run", where=str(run.folder.root)) from None
        yield
