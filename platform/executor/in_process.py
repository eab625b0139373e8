"""Tasks one after the other in this very process: no start-up cost, for small jobs and for debugging."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from ..cli import main
from ..progress import progress
from .protocol import Job, TaskResult, called

INTERRUPTED = 130  # what the command line's shell returns for Ctrl-C


class InProcessExecutor:
    """Runs each task's verb function here. Text written through sys.stdout and sys.stderr goes to the task's log."""

    def run(self, job: Job, *, workers: int = 0) -> list[TaskResult]:
        """Run every task in order; `workers` has no effect here."""
        results: list[TaskResult] = []
        with called("0"):
            for index, task in enumerate(progress(job.tasks, label=job.name, unit="task")):
                if job.stop():
                    raise job.stopped(len(results))
                log, started = job.log_path(index), time.monotonic()
                exit_code = run_here(task, log)
                results.append(TaskResult(task, exit_code, time.monotonic() - started, log))
        return results


def run_here(task: Sequence[str], log: Path) -> int:
    """Run a task in this process, what it writes going to the end of `log`: its exit code as a process of its own.

    Raises KeyboardInterrupt.
    """
    with log.open("a") as out:
        exit_code = _exit_code(task, out)
    if exit_code == INTERRUPTED:
        raise KeyboardInterrupt
    return exit_code


def _exit_code(task: Sequence[str], out: TextIO) -> int:
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            return main(list(task))
        except SystemExit as stop:  # argparse
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except Exception:
            traceback.print_exc(file=out)
            return 1
