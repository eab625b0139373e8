"""The seam between what is to be done (a list of commands) and who does it (this process, local ones, a cluster)."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..errors import ConfigError, SavedResumable
from ..registry import Registry

WORKER = "MEGAVLM_WORKER"  # names the worker that a task runs in; no two that live at once have the same name


def never() -> bool:
    """Nobody asks to stop."""
    return False


@dataclasses.dataclass(frozen=True)
class Job:
    """Tasks that may run in any order and side by side.

    `tasks` are argument lists of `megavlm`, such as ["curate", "worker", "runs/a", "--stage", "embed", "--task", "3"];
    `logs` is the folder that gets one log file per task. `stop` is asked now and then: once it says yes, no further
    task begins, and `run` raises SavedResumable. Raises ConfigError when `name` is no plain file name.
    """

    name: str
    tasks: Sequence[Sequence[str]]
    logs: Path
    stop: Callable[[], bool] = never

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-][\w.-]*", self.name):
            raise ConfigError(f"'{self.name}' cannot name a job", fix="use letters, digits, '-', '_' and '.'")

    def log_path(self, index: int) -> Path:
        """Where task `index` writes; the folder is made on the way."""
        self.logs.mkdir(parents=True, exist_ok=True)
        return self.logs / f"{self.name}-{index:05d}.log"

    def stopped(self, done: int) -> SavedResumable:
        """The error for who was asked to stop after `done` tasks."""
        what = f"stopped in job '{self.name}' after {done} of {len(self.tasks)} tasks"
        return SavedResumable(what, fix="the same command goes on from here")


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """How one task ended. A negative `exit_code` is the signal that killed it; `seconds` is wall time."""

    task: Sequence[str]
    exit_code: int
    seconds: float
    log: Path

    @property
    def ok(self) -> bool:
        """Whether the task did what it was asked."""
        return self.exit_code == 0

    def tail(self, lines: int = 20) -> str:
        """The last lines of the log, for an error message."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


class Executor(Protocol):
    """Runs jobs. A failing task stops no other one; what to make of it is the caller's to say."""

    def run(self, job: Job, *, workers: int) -> list[TaskResult]:
        """Run every task, at most `workers` side by side; the results stand in the order of `job.tasks`.

        A task finds in $MEGAVLM_WORKER who it runs on.
        """
        ...


def make(executors: Registry, name: str, where: str, **options: Any) -> Executor:
    """The executor of that name. Raises ConfigError for options, keys below `where`, that it does not take or lacks."""
    kind = executors.load(name)
    takes = inspect.signature(kind).parameters
    for option in options.keys() - takes.keys():
        fix = "leave it out, or name another executor"
        raise ConfigError(f"executor '{name}' takes no '{option}'", where=f"{where}.{option}", fix=fix)
    for option, parameter in takes.items():
        if parameter.default is parameter.empty and option not in options:
            key = f"{where}.{option}"
            raise ConfigError(f"executor '{name}' needs a '{option}'", where=key, fix=f"set {key}=...")
    made: Executor = kind(**options)
    return made


@contextlib.contextmanager
def called(worker: str) -> Iterator[None]:
    """What runs here meanwhile finds this worker's name in its environment."""
    before = os.environ.get(WORKER)
    os.environ[WORKER] = worker
    try:
        yield
    finally:
        os.environ.pop(WORKER) if before is None else os.environ.update({WORKER: before})


def failures(results: Sequence[TaskResult]) -> list[TaskResult]:
    """The tasks that did not end with 0."""
    return [result for result in results if not result.ok]
