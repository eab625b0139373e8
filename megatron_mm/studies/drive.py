"""Runs what is not done of a study's trainings, and remembers why one failed. Loads no torch."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Iterator, Sequence

from megavlm.platform.errors import MegaVLMError, SavedResumable
from megavlm.platform.executor import Executor, Job, TaskResult
from megavlm.platform.runs import Attempt, RunFolder, SaveRequest

from ..training.lock import exclusive
from ..training.packs import make_demo_data
from .runs import VariantRun
from .schema import Study
from .shared import Sharing

ENDED = (0, 3, 5)  # exit codes of a training that came to its end, whatever its gate says
FAILED = "variant_failed"  # the event of an attempt
LOOK_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Driver:
    """Who trains what a study lacks: one attempt of the study, however many lists of trainings it is given."""

    folder: RunFolder
    study: Study
    executor: Executor
    attempt: Attempt
    request: SaveRequest

    def bring(self, name: str, runs: Sequence[VariantRun], sharing: Sharing) -> None:
        """Bring every run as far as it goes; one that fails stops no other. The logs are called after `name`.

        Raises SavedResumable when someone asked to stop (USR1, TERM or a wish in the attempt's folder), after the
        trainings at work have saved.
        """
        for run in runs:
            make_demo_data(run.recipe)
        for number, wave in enumerate(sharing.waves(runs)):
            todo = [run for run in wave if not _done(run, sharing, self.attempt)]
            if todo and not self.request.requested:
                self._train(f"{name}-{number}", todo)
        if self.request.requested and not all(run.finished for run in runs):
            raise SavedResumable(
                "stopped on request after saving", where=str(self.folder.root), fix="the same command goes on"
            )

    def _train(self, name: str, runs: Sequence[VariantRun]) -> None:
        tasks = [run.command() for run in runs]
        job = Job(name, tasks, self.attempt.logs, stop=lambda: self.request.requested)
        with passing_on(self.request, runs):
            results = self.executor.run(job, workers=self.study.executor.workers)
        for run, result in zip(runs, results, strict=True):
            _tell(self.attempt, run, result)


@contextlib.contextmanager
def driving(folder: RunFolder, study: Study) -> Iterator[Driver]:
    """Hold the study's folder and begin an attempt; raises MegaVLMError when another driver is at work here."""
    executor = study.executor.make()
    with only_driver(folder), folder.new_attempt() as attempt, SaveRequest(attempt) as request:
        yield Driver(folder, study, executor, attempt, request)


def drive(folder: RunFolder, study: Study, runs: Sequence[VariantRun], sharing: Sharing) -> None:
    """Bring every run as far as it goes; raises what `driving` and `Driver.bring` do."""
    with driving(folder, study) as driver:
        driver.bring(study.name, runs, sharing)


def _done(run: VariantRun, sharing: Sharing, attempt: Attempt) -> bool:
    """Whether nothing is left to train, after taking over what others have trained."""
    if run.finished:
        return True
    if taken := sharing.take_over(run):
        attempt.event("taken_over", variant=run.variant, seed=run.seed, stages=taken)
    return False


@contextlib.contextmanager
def only_driver(folder: RunFolder) -> Iterator[None]:
    """Hold the study's folder; raises MegaVLMError when another process does."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(exclusive([folder.path("lock")]))
        except MegaVLMError as error:
            what = f"another `megavlm study run` is at work on {folder.root}"
            raise MegaVLMError(what, where=error.where, fix="wait for it, or give another --out") from None
        yield


@contextlib.contextmanager
def passing_on(request: SaveRequest, runs: Sequence[VariantRun]) -> Iterator[None]:
    """Meanwhile, hand the wish to save on to the trainings: an executor only returns when those at work have ended."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_SECONDS):
            for run in runs if request.requested else ():
                for attempt in run.folder.attempts()[-1:]:
                    attempt.request_save()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _tell(attempt: Attempt, run: VariantRun, result: TaskResult) -> None:
    if result.exit_code in ENDED or result.exit_code == SavedResumable.exit_code:
        return
    told = {"variant": run.variant, "seed": run.seed, "exit_code": result.exit_code}
    attempt.event(FAILED, **told, reason=reason(result), log=str(result.log))


def reason(result: TaskResult) -> str:
    """Why a training failed: its own error, which --json prints last, or how it ended."""
    lines = result.tail(60).splitlines()
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            error = json.loads(line)["error"]
            return f"{error['what']} ({error['where']})" if error["where"] else str(error["what"])
    if result.exit_code < 0:
        return f"killed by signal {-result.exit_code}"
    return lines[-1] if lines else f"exit code {result.exit_code}"


def reasons(folder: RunFolder) -> dict[tuple[str, int], str]:
    """(variant, seed) -> why it failed the last time it was tried."""
    events = [event for attempt in folder.attempts() for event in attempt.events() if event["kind"] == FAILED]
    return {(event["variant"], event["seed"]): event["reason"] for event in events}
