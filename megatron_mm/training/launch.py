"""Starts the workers of a training, shows how far it is, and passes on the wish to save. Loads no torch."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megavlm.platform.errors import MegaVLMError
from megavlm.platform.progress import Progress, progress
from megavlm.platform.runs import Attempt, RunFolder, SaveRequest

from ..config import Stages
from ..torchrun import started

WORKER = "megavlm.megatron_mm.training.worker"
POLL_SECONDS = 0.2


def launch(run: RunFolder, stages: Stages, names: Sequence[str], world: int) -> None:
    """Train `names` on `world` processes. Raises MegaVLMError with the worker's own message when it fails."""
    with run.new_attempt() as attempt, (attempt.logs / "torchrun.log").open("wb") as log:
        with started(WORKER, [str(run.root), *names], world, output=log) as process:
            _wait(process, run, attempt, stages)
        if process.returncode and run.saved is None:
            raise failure(attempt, process.returncode)
        attempt.exit_code = 4 if run.saved is not None else 0


def _wait(process: subprocess.Popen[bytes], run: RunFolder, attempt: Attempt, stages: Stages) -> None:
    metrics, shown = Follower(run.path("metrics.jsonl")), Shown(stages)
    with SaveRequest(attempt) as request:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            if request.requested:
                attempt.request_save()  # torchrun below would die of a signal
            for line in metrics.lines():
                shown.update(line)
    for line in metrics.lines():
        shown.update(line)
    shown.stop()


def failure(attempt: Attempt, code: int) -> MegaVLMError:
    """The first error a rank reported, as it was raised there."""
    told = next((event for event in attempt.events() if event["kind"] == "failed"), None)
    if told is None:
        return MegaVLMError(f"a rank died (torchrun's exit code {code})", where=str(attempt.logs), fix="read its log")
    error = MegaVLMError(told["what"], where=told["where"] or str(attempt.log_path(told["rank"])), fix=told["fix"])
    error.exit_code = told["exit_code"]
    return error


class Follower:
    """The lines that are added to a JSON-lines file from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = path.stat().st_size if path.exists() else 0

    def lines(self) -> Iterator[dict[str, Any]]:
        """Whole new lines since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._at)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._at += len(whole) + len(newline)
        for line in whole.splitlines():
            try:
                yield json.loads(line)
            except ValueError:  # torn by an earlier crash
                continue


class Shown:
    """One progress display a stage, driven by the steps in metrics.jsonl."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages
        self._stage: str | None = None
        self._step = 0
        self._bar: Progress[Any] | None = None

    def update(self, line: dict[str, Any]) -> None:
        """Take one line of metrics.jsonl."""
        if line["stage"] != self._stage:
            self.stop()
            self._stage, self._step = line["stage"], 0
            self._bar = progress(total=self._stages[line["stage"]].steps, label=f"train {line['stage']}", unit="step")
            self._bar.__enter__()
        if self._bar and line["step"] > self._step:
            self._bar.advance(line["step"] - self._step)
            self._step = line["step"]
        if self._stage and self._step == self._stages[self._stage].steps:
            self.stop()  # the stage's evaluation is no step

    def stop(self) -> None:
        """The display of the stage at hand is over."""
        if self._bar:
            self._bar.__exit__(None, None, None)
            self._bar = None
