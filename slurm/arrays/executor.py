"""Commands on a cluster: an array of workers that lease them, and further arrays for those that failed or were lost."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from megavlm.platform.errors import ConfigError, MegaVLMError
from megavlm.platform.executor import Job, TaskResult
from megavlm.platform.progress import Progress, progress

from ..commands import SlurmError
from ..profile import ClusterProfile, load_profile
from ..script import check_path
from .board import Board, Ending, Told
from .submission import SUBMITIT, cancel, most_tasks, patiently, submit
from .watcher import SqueueWatcher

TRIES = 3  # of a command, and of arrays in a row in which no command was begun
POLL_SECONDS = 0.5
LONGEST_PAUSE = 5.0  # between two looks at the workers' files
CANCEL_SECONDS = 60.0  # so long does who was interrupted wait for a slurmctld that does not answer
LAST_WORDS = 12  # lines


class SlurmArrayExecutor:
    """Runs jobs on the cluster of that profile. The driver waits here; when it ends, so do its arrays."""

    def __init__(self, cluster: str) -> None:
        """Raises ConfigError for a profile that is not there or not right."""
        self.profile: ClusterProfile = load_profile(cluster)

    def run(self, job: Job, *, workers: int) -> list[TaskResult]:
        """Run every task, by at most so many workers, fewer where the profile or Slurm allow fewer.

        A command is tried three times. Raises SlurmError when no array can be submitted, MegaVLMError when none of
        three arrays began anything.
        """
        if workers < 1:
            raise ConfigError(f"{workers} workers for job '{job.name}'", fix="workers >= 1")
        check_path(job.logs.absolute())
        bar: Progress[object] = progress(total=len(job.tasks), label=job.name, unit="task")
        with bar:
            return _Run(self.profile, job, workers, bar).results()


class _Run:
    """One job on its way."""

    def __init__(self, profile: ClusterProfile, job: Job, workers: int, bar: Progress[object]) -> None:
        self.profile, self.job, self.workers, self.bar = profile, job, workers, bar
        self.tries: Counter[int] = Counter()
        self.found: dict[int, TaskResult] = {}

    def results(self) -> list[TaskResult]:
        """Array after array, until every command has succeeded or failed for good."""
        idle = 0
        while todo := [index for index in range(len(self.job.tasks)) if index not in self.found]:
            board, told = self._array(todo)
            idle = 0 if told.begun else idle + 1
            if idle == TRIES:
                raise _nothing_began(board)
        return [self.found[index] for index in range(len(self.job.tasks))]

    def _array(self, todo: list[int]) -> tuple[Board, Told]:
        allowed = patiently(most_tasks, self._pause)
        tasks = min(self.workers, self.profile.limits.array_tasks, allowed, len(todo))
        board = Board.make(_new_folder(self.job), self.job, todo, tasks)
        make = partial(submit, self.profile, self.job.name, board.folder, tasks)
        ids = patiently(make, partial(self._pause, board=board))
        watcher = SqueueWatcher()
        for job_id in ids:
            watcher.register_job(job_id)
        with _ended_with_us(ids, watcher):
            told = self._follow(board, len(todo), lambda: all(map(watcher.is_done, ids)))
        for index in todo:
            self._judge(index, told, [watcher.describe(ids[slot]) for slot in told.begun.get(index, [])])
        return board, told

    def _follow(self, board: Board, count: int, over: Callable[[], bool]) -> Told:
        """Wait until every command has ended, or every worker has."""
        pause, shown = POLL_SECONDS, 0
        while True:
            ended = over()  # asked first: what was told before the end is then read
            told = board.told()
            good = sum(ending.exit_code == 0 for ending in told.endings.values())
            self.bar.advance(good - shown)
            if ended or len(told.endings) == count:
                return told
            shown, pause = good, min(1.2 * pause, LONGEST_PAUSE)
            self._pause(pause, board)

    def _judge(self, index: int, told: Told, workers: list[str]) -> None:
        """Take in what became of a command: done, to be tried again, or failed for good. `workers`: one each time."""
        ending, log = told.endings.get(index), self.job.log_path(index)
        self.tries[index] += len(workers)
        if ending is None and workers:
            with log.open("a") as out:
                out.write(f"the worker that ran this is gone: {workers[-1]}\n")
        ending = ending or Ending(index, 1, 0.0)
        if ending.exit_code == 0 or self.tries[index] >= TRIES:
            self.bar.advance(int(ending.exit_code != 0))
            self.found[index] = TaskResult(self.job.tasks[index], ending.exit_code, ending.seconds, log)

    def _pause(self, seconds: float, board: Board | None = None) -> None:
        """Wait, show that the driver lives, and hear whether it is to stop."""
        if self.job.stop():
            raise self.job.stopped(len(self.found))
        if board is not None:
            board.beat()
        time.sleep(seconds)


@contextlib.contextmanager
def _ended_with_us(ids: list[str], watcher: SqueueWatcher) -> Iterator[None]:
    """Cancel what is left of the array: workers that found nothing to do, or all of them when we are interrupted."""
    try:
        yield
    finally:
        array = ids[0].split("_")[0]
        if not all(watcher.is_done(job_id, mode="cache") for job_id in ids):
            try:
                patiently(partial(cancel, array), time.sleep, CANCEL_SECONDS)
            except SlurmError as error:
                print(f"array {array} may still be there ({error.what}); end it with: scancel {array}", file=sys.stderr)


def _new_folder(job: Job) -> Path:
    folders = (job.logs.absolute() / f"{job.name}-arrays" / f"{number:02d}" for number in itertools.count(1))
    return next(folder for folder in folders if not folder.exists())


def _nothing_began(board: Board) -> MegaVLMError:
    logs = sorted((board.folder / SUBMITIT).glob("*_log.err"))
    told = next((text for log in logs if (text := log.read_text(errors="replace").strip())), "nor did they say why")
    last = "\n".join(told.splitlines()[-LAST_WORDS:])
    what = f"the workers of {TRIES} arrays in a row began no command:\n{last}"
    fix = "see whether the nodes can import megavlm and reach this folder, and the profile's set-up lines"
    return MegaVLMError(what, where=str(board.folder), fix=fix)
