"""What a tracker is, and several of them as one that never stops a training. Loads no torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from megavlm.platform.errors import MissingPackage
from megavlm.platform.runs import RunFolder

NO_FIGURES = {"stage", "step", "attempt", "time", "batch"}


class Tracker(Protocol):
    """One stage's figures on their way to somewhere."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The figures of one step (from 1) by their names in metrics.jsonl."""

    def close(self) -> None:
        """There are no more."""


class TrackerSpec(Protocol):
    """What a recipe's `run.trackers` names. `check` is asked before anything starts, `open` on the first rank."""

    name: str

    def check(self) -> None:
        """Raise MissingPackage where this tracker cannot run here."""

    def open(self, run: RunFolder, stage: str, step: int) -> Tracker:
        """A tracker of a stage that goes on behind `step`."""


class Trackers:
    """All that were asked for. One that fails is reported once and left out: training goes on without it."""

    def __init__(
        self, specs: Sequence[TrackerSpec], run: RunFolder, stage: str, step: int, report: Callable[..., object]
    ) -> None:
        self._report = report
        self._open: dict[str, Tracker] = {}
        for spec in specs:
            self._try(spec.name, partial(self._begin, spec, run, stage, step))

    def log(self, told: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl."""
        values = {name: float(value) for name, value in told.items() if name not in NO_FIGURES and _is_number(value)}
        for name, tracker in list(self._open.items()):
            self._try(name, partial(tracker.log, told["step"], values))

    def close(self) -> None:
        """Let each write what it still holds."""
        for name, tracker in list(self._open.items()):
            self._try(name, tracker.close)
        self._open.clear()

    def _begin(self, spec: TrackerSpec, run: RunFolder, stage: str, step: int) -> None:
        self._open[spec.name] = spec.open(run, stage, step)

    def _try(self, name: str, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # a service that is away, a full disk: whatever it is, the training is worth more
            self._open.pop(name, None)
            self._report("tracker_failed", tracker=name, what=f"{type(error).__name__}: {error}")


def require(package: str, tracker: str) -> None:
    """Raise MissingPackage where a tracker's package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise MissingPackage(
            f"the tracker '{tracker}' needs the package '{package}', which is not installed",
            where="run.trackers",
            fix=f"pip install {package}, or leave it out of run.trackers",
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
