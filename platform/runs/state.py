"""What a run is doing, told from its files alone: no scheduler, no network, no torch."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from typing import Any

from .folder import RunFolder
from .lines import last_line

SILENT_SECONDS = 300.0  # a rank that has not been heard of for so long is worth a look
JOBS = "jobs.jsonl"  # written by `submit`: which jobs of a scheduler a run has had
CANCELLED = "cancelled"  # a person said stop

Event = dict[str, Any]


def describe(run: RunFolder, now: float | None = None) -> dict[str, Any]:
    """The run as a JSON object: state, attempt, step, last metrics, ranks with the age of their heartbeat in seconds.

    States: "new" (no attempt), "queued" (no attempt, and submitted to a scheduler), "running", "silent" (no sign of
    life for SILENT_SECONDS), "saved" (resumable), "stopped" (its process is gone without a word, or a launcher called
    the attempt over), "cancelled", "failed", "finished". However long metrics.jsonl is, only its end is read.
    """
    now = time.time() if now is None else now
    attempts, metrics, finished = run.attempts(), last_line(run.path("metrics.jsonl")), run.finished
    last = attempts[-1] if attempts else None
    events = last.events() if last else []
    beats = last.heartbeats() if last and not finished else []
    known_step = metrics.get("step") if metrics else None
    return {
        "name": run.name,
        "folder": str(run.root),
        "state": "finished" if finished else _state(run, events if last else None, beats, now),
        "attempts": len(attempts),
        "step": max((beat["step"] for beat in beats), default=known_step),
        "saved_step": run.saved,
        "error": _ending(events).get("error"),
        "metrics": metrics,
        "ranks": [_rank(beat, now) for beat in beats],
        "report": str(run.path("report.html")) if run.path("report.html").exists() else None,
    }


def _rank(beat: dict[str, Any], now: float) -> dict[str, Any]:
    told = {key: beat[key] for key in ("rank", "step", "doing", "host") if key in beat}
    return told | {"seconds_ago": round(now - beat["time"], 1)}


def _state(run: RunFolder, events: Sequence[Event] | None, beats: Sequence[dict[str, Any]], now: float) -> str:
    if events is None:
        return "cancelled" if _has(run, CANCELLED) else "queued" if _has(run, JOBS) else "new"
    ending = _ending(events)
    over = ending or any(event["kind"] == "judged" for event in events) or _is_gone(events)
    if over and _has(run, CANCELLED):
        return "cancelled"
    if run.saved is not None or ending.get("exit_code") == 4:
        return "saved"
    if ending:
        return "stopped" if ending["exit_code"] in {0, 130} else "failed"
    if over:
        return "stopped"
    signs = [beat["time"] for beat in beats] + [event["time"] for event in events]
    return "running" if now - max(signs, default=0.0) < SILENT_SECONDS else "silent"


def _has(run: RunFolder, file: str) -> bool:
    return run.path(file).exists()


def _ending(events: Sequence[Event]) -> Event:
    """The last `ended` event, or an empty mapping."""
    return next((event for event in reversed(events) if event["kind"] == "ended"), {})


def _is_gone(events: Sequence[Event]) -> bool:
    """Whether the process that started the attempt ran on this very host and is no more."""
    started = next((event for event in events if event["kind"] == "started"), None)
    return started is not None and started.get("host") == socket.gethostname() and not lives(started["pid"])


def lives(pid: int) -> bool:
    """Whether a process of this host lives."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it lives, and belongs to somebody else
    return True
