"""How far a training is, for whoever started it: metrics.jsonl followed, and a progress display. Loads no torch."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megavlm.platform.progress import Progress, progress

from ..config import Stages
from .console import step_line
from .watchers.shown import watched_words

LINE_SECONDS = 1.0  # between two lines of steps that are as they should be
FAR_BEHIND = 2.0  # the slowest rank's own time over the median


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
    """One progress display a stage, driven by the steps in metrics.jsonl, and a line for each, or one a second.

    A step that needs looking at always has its line: the update skipped, a rank far behind the others, or one after
    which watchers looked.
    """

    def __init__(self, stages: Stages) -> None:
        self._stages = stages
        self._stage: str | None = None
        self._step = 0
        self._bar: Progress[Any] | None = None
        self._told = 0.0

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
        steps = self._stages[line["stage"]].steps
        if self._bar:
            self._tell(line, steps)
        if self._stage and self._step == steps:
            self.stop()  # the stage's evaluation is no step

    def _tell(self, line: dict[str, Any], steps: int) -> None:
        warn = not line.get("updated", True) or line.get("slowness", 1.0) >= FAR_BEHIND
        watched, now = watched_words(line, self._stages[line["stage"]]), time.monotonic()
        if self._bar and (warn or watched or line["step"] in (1, steps) or now - self._told >= LINE_SECONDS):
            self._told = now
            words = [step_line(line, steps), watched]
            self._bar.tell(" | ".join(filter(None, words)), warn=warn)

    def stop(self) -> None:
        """The display of the stage at hand is over."""
        if self._bar:
            self._bar.__exit__(None, None, None)
            self._bar = None
