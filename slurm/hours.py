"""Where a run's GPU-hours went: productive, start-up, saving or lost, from its files alone."""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from megavlm.platform.runs import Attempt, RunFolder
from megavlm.platform.runs.state import SILENT_SECONDS

from .attempts import judged_or_ended
from .supervisor.policy import Verdict

KINDS = ("productive", "start_up", "saving", "lost")
WELL = {0, 3, 5}  # exit codes of work that was done, whatever a gate said of it
SAVED = 4
Record = Mapping[str, Any]


@dataclasses.dataclass
class Split:
    """Seconds of one attempt. They add up to its time from launch to end; `devices` were held all that while."""

    productive: float = 0.0
    start_up: float = 0.0
    saving: float = 0.0
    lost: float = 0.0
    devices: int = 1
    unit: str = "process"

    def add(self, kind: str, seconds: float) -> None:
        """`seconds` more of a kind."""
        setattr(self, kind, getattr(self, kind) + seconds)

    @property
    def wall(self) -> float:
        """Seconds from launch to end."""
        return self.productive + self.start_up + self.saving + self.lost

    def hours(self) -> dict[str, float]:
        """Device-hours by kind, and their sum."""
        told = {kind: getattr(self, kind) * self.devices / 3600 for kind in KINDS}
        return told | {"total": sum(told.values())}


def hours(run: RunFolder, now: float | None = None) -> dict[str, Any]:
    """The run's device-hours by kind, their sum, and the unit: "gpu" where every attempt had GPUs, else "process"."""
    splits = list(split(run, now).values())
    told = [each.hours() for each in splits]
    total = {kind: round(sum(each[kind] for each in told), 6) for kind in (*KINDS, "total")}
    return {"unit": "gpu" if splits and all(each.unit == "gpu" for each in splits) else "process", **total}


def split(run: RunFolder, now: float | None = None) -> dict[int, Split]:
    """Attempt number -> its seconds by kind.

    A step counts when no later attempt did it again. Start-up is all before the first step's beginning; saving is what
    `saved` events tell, and the end of an attempt that saved and stopped; lost are steps done again and all that
    followed the last progress of an attempt that failed or hung. What lies between two steps (waiting for data, an
    evaluation, the next stage being built) belongs to the step that follows, and the evaluation after an attempt's
    last step to the work where it ended well: the recipe asks for it. An attempt that goes on counts up to `now`.
    """
    steps = _steps_by_attempt(run)
    return {each.number: _split(each, steps[each.number], now) for each in run.attempts()}


def _steps_by_attempt(run: RunFolder) -> dict[int, list[tuple[Record, bool]]]:
    """Attempt -> its steps in order of time, each with whether it is the last writing of that step."""
    lines = [line for line in run.metrics() if {"stage", "step", "seconds", "attempt", "time"} <= line.keys()]
    last = {(line["stage"], line["step"]): index for index, line in enumerate(lines)}
    found: dict[int, list[tuple[Record, bool]]] = defaultdict(list)
    for index, line in enumerate(lines):
        found[line["attempt"]].append((line, last[line["stage"], line["step"]] == index))
    return found


def _split(attempt: Attempt, steps: Sequence[tuple[Record, bool]], now: float | None) -> Split:
    events = attempt.events()
    out = Split(**_devices(attempt, events))
    if not events:
        return out
    begin = min(event["time"] for event in events)
    end, goes_on = _end(attempt, events, [line for line, _ in steps], time.time() if now is None else now)
    return account(out, begin, max(begin, end), steps, events, goes_on)


def account(
    out: Split,
    begin: float,
    end: float,
    steps: Sequence[tuple[Record, bool]],
    events: Sequence[Record],
    goes_on: bool,
) -> Split:
    """Share the seconds from `begin` to `end` out; every one goes to exactly one kind, whatever the clocks say."""
    saves = [(event["time"], None, event) for event in events if event["kind"] == "saved"]
    marks = sorted([*((line["time"], counts, line) for line, counts in steps), *saves], key=lambda mark: mark[0])
    at, waiting, stepped = begin, 0.0, False
    for moment, counts, record in marks:
        moment = min(max(moment, at), end)
        span = moment - at
        at = moment
        if counts is None:  # a save; what came before it in this gap waits for the step that it belongs to
            saving = min(span, max(float(record["seconds"]), 0.0))
            out.add("saving", saving)
            waiting += span - saving
            continue
        span, waiting = span + waiting, 0.0
        step = span if stepped else min(span, max(float(record["seconds"]), 0.0))
        out.add("start_up", span - step)
        out.add("productive" if counts else "lost", step)
        stepped = True
    out.add(_tail(events, stepped, goes_on), waiting + end - at)
    return out


def _tail(events: Sequence[Record], stepped: bool, goes_on: bool) -> str:
    """What the time after an attempt's last step was."""
    ended = next((event for event in reversed(events) if event["kind"] == "ended"), None)
    if ended is not None:
        return "productive" if ended["exit_code"] in WELL else "saving" if ended["exit_code"] == SAVED else "lost"
    if not goes_on or any(event["kind"] == "hang" for event in events):
        return "lost"
    return "productive" if stepped else "start_up"


def _end(attempt: Attempt, events: Sequence[Record], lines: Sequence[Record], now: float) -> tuple[float, bool]:
    """When the attempt was over: its last word or sign of life; or `now`, and True, while it gives signs.

    One that lost its supervisor is judged by the next job, when its nodes have long been given back.
    """
    own = [event for event in events if event.get("verdict") != Verdict.LOST]
    last: float = max((record["time"] for record in [*own, *lines]), default=events[0]["time"])
    if judged_or_ended(own):
        return last, False
    last = max([last, *(beat["time"] for beat in attempt.heartbeats())])
    goes_on = len(own) == len(events) and now - last < SILENT_SECONDS
    return (max(last, now), True) if goes_on else (last, False)


def _devices(attempt: Attempt, events: Sequence[Record]) -> dict[str, Any]:
    """What the attempt held: the GPUs or processes it was launched with; by itself, the ranks that gave heartbeats."""
    launched: Record = next((event for event in events if event["kind"] == "launched"), {})
    if launched.get("gpus"):
        return {"devices": int(launched["gpus"]), "unit": "gpu"}
    return {"devices": int(launched.get("processes") or 0) or max(len(attempt.heartbeats()), 1), "unit": "process"}
