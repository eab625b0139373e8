"""Tasks as local processes, a few at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

from ..errors import ConfigError
from ..processes import environment
from ..progress import Progress, progress
from .protocol import WORKER, Job, TaskResult

POLL_SECONDS = 0.02
GRACE_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class _Running:
    index: int
    slot: int
    process: subprocess.Popen[bytes]
    started: float
    log: Path


class LocalExecutor:
    """N processes `python -m megavlm.platform.executor.child VERB ...`, each with its log file and process group."""

    def run(self, job: Job, *, workers: int) -> list[TaskResult]:
        """Run every task; on interrupt every process group is ended before KeyboardInterrupt goes on."""
        if workers < 1:
            raise ConfigError(f"{workers} workers for job '{job.name}'", fix="workers >= 1, or the in_process executor")
        waiting, running = deque(range(len(job.tasks))), list[_Running]()
        results: dict[int, TaskResult] = {}
        try:
            bar: Progress[object] = progress(total=len(job.tasks), label=job.name, unit="task")
            with bar:
                while waiting or running:
                    while waiting and len(running) < workers and not job.stop():
                        running.append(_start(job, waiting.popleft(), _free_slot(running), workers))
                    if waiting and not running:
                        raise job.stopped(len(results))
                    done = [one for one in running if one.process.poll() is not None]
                    running = [one for one in running if one not in done]
                    results |= {one.index: _result(job, one) for one in done}
                    bar.advance(len(done))
                    if not done:
                        time.sleep(POLL_SECONDS)
        finally:
            _end_groups(running)
        return [results[index] for index in range(len(job.tasks))]


def _free_slot(running: list[_Running]) -> int:
    """The lowest number that no running process has: tasks that follow one another share a worker's name."""
    return next(slot for slot in range(len(running) + 1) if slot not in {one.slot for one in running})


def _start(job: Job, index: int, slot: int, workers: int) -> _Running:
    log = job.log_path(index)
    command = [sys.executable, "-m", "megavlm.platform.executor.child", str(os.getpid()), *job.tasks[index]]
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment(workers) | {WORKER: str(slot)},
            start_new_session=True,  # its own group: ended whole, and no Ctrl-C of the terminal reaches it first
        )
    return _Running(index, slot, process, time.monotonic(), log)


def _result(job: Job, one: _Running) -> TaskResult:
    return TaskResult(job.tasks[one.index], one.process.returncode, time.monotonic() - one.started, one.log)


def _end_groups(running: list[_Running]) -> None:
    """Ask every group to stop, and kill what is left after the grace time."""
    for one in running:
        _signal_group(one.process, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    for one in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            one.process.wait(max(0.0, deadline - time.monotonic()))
        _signal_group(one.process, signal.SIGKILL)
        one.process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
