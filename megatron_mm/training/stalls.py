"""Which rank the others wait for, as far as heartbeats tell. Loads no torch."""

from __future__ import annotations

import time
from typing import Any

from megavlm.platform.runs import Attempt

WAITING = "waiting"  # what a rank does whose collective timed out: the others are those it waited for
NAMED = 4


def suspects(attempt: Attempt) -> str:
    """The ranks that are not waiting, and of those the ones furthest behind, in words."""
    beats: list[dict[str, Any]] = [beat for beat in attempt.heartbeats() if beat["doing"] != WAITING]
    if not beats:
        return "every rank waited for another one"
    behind = min(beat["step"] for beat in beats)
    late = [beat for beat in beats if beat["step"] == behind]
    named = "; ".join(_told(beat, attempt) for beat in late[:NAMED])
    more = f"; and {len(late) - NAMED} more" if len(late) > NAMED else ""
    return f"suspected: {named}{more}"


def _told(beat: dict[str, Any], attempt: Attempt) -> str:
    ago = time.time() - beat["time"]
    words = f"rank {beat['rank']} on {beat['host']} (after step {beat['step']}, doing '{beat['doing']}', last sign of"
    return f"{words} life {ago:.0f} s ago, {attempt.log_path(beat['rank'])})"
