"""What a run is doing, told from its files alone: no scheduler, no network, no torch."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from .attempt import Attempt
from .folder import RunFolder

SILENT_SECONDS = 300.0  # a rank that has not been heard of for so long is worth a look


def describe(run: RunFolder, now: float | None = None) -> dict[str, Any]:
    """The run as a JSON object: state, attempt, step, last metrics, ranks with the age of their heartbeat in seconds.

    States: "new" (no attempt), "running", "silent" (no sign of life for SILENT_SECONDS), "saved" (resumable),
    "stopped" (its process is gone without a word), "failed", "finished".
    """
    now = time.time() if now is None else now
    attempts, metrics = run.attempts(), run.metrics()
    last = attempts[-1] if attempts else None
    beats = last.heartbeats() if last else []
    return {
        "name": run.name,
        "folder": str(run.root),
        "state": _state(run, last, beats, now),
        "attempts": len(attempts),
        "step": max((beat["step"] for beat in beats), default=None),
        "saved_step": run.saved,
        "error": _ending(last).get("error") if last else None,
        "metrics": metrics[-1] if metrics else None,
        "ranks": [{"rank": b["rank"], "step": b["step"], "seconds_ago": round(now - b["time"], 1)} for b in beats],
        "report": str(run.path("report.html")) if run.path("report.html").exists() else None,
    }


def _state(run: RunFolder, last: Attempt | None, beats: list[dict[str, Any]], now: float) -> str:
    if run.finished:
        return "finished"
    if last is None:
        return "new"
    ending = _ending(last)
    if run.saved is not None or ending.get("exit_code") == 4:
        return "saved"
    if ending:
        return "stopped" if ending["exit_code"] in {0, 130} else "failed"
    if _is_gone(last):
        return "stopped"
    signs = [beat["time"] for beat in beats] + [event["time"] for event in last.events()]
    return "running" if now - max(signs, default=0.0) < SILENT_SECONDS else "silent"


def _ending(attempt: Attempt) -> dict[str, Any]:
    """The last `ended` event, or an empty mapping."""
    return next((event for event in reversed(attempt.events()) if event["kind"] == "ended"), {})


def _is_gone(attempt: Attempt) -> bool:
    """Whether the process that started the attempt ran on this very host and is no more."""
    started = next((event for event in attempt.events() if event["kind"] == "started"), None)
    if started is None or started.get("host") != socket.gethostname():
        return False
    try:
        os.kill(started["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it lives, and belongs to somebody else
    return False
