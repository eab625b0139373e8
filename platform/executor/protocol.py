"""The seam between what is to be done (a list of commands) and who does it (this process, local ones, a cluster)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ..errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Job:
    """Tasks that may run in any order and side by side.

    `tasks` are argument lists of `megavlm`, such as ["curate", "worker", "runs/a", "--stage", "embed", "--task", "3"];
    `logs` is the folder that gets one log file per task. Raises ConfigError when `name` is no plain file name.
    """

    name: str
    tasks: Sequence[Sequence[str]]
    logs: Path

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-][\w.-]*", self.name):
            raise ConfigError(f"'{self.name}' cannot name a job", fix="use letters, digits, '-', '_' and '.'")

    def log_path(self, index: int) -> Path:
        """Where task `index` writes; the folder is made on the way."""
        self.logs.mkdir(parents=True, exist_ok=True)
        return self.logs / f"{self.name}-{index:05d}.log"


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
        """Run every task, at most `workers` side by side; the results stand in the order of `job.tasks`."""
        ...


def failures(results: Sequence[TaskResult]) -> list[TaskResult]:
    """The tasks that did not end with 0."""
    return [result for result in results if not result.ok]
