"""What happened in each attempt of a run: on which nodes, how it ended, and who failed first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megavlm.platform.runs import Attempt, RunFolder

from .supervisor.policy import Verdict

Event = Mapping[str, Any]


def attempts(run: RunFolder) -> list[dict[str, Any]]:
    """Every attempt as plain data, oldest first."""
    return [describe(attempt) for attempt in run.attempts()]


def describe(attempt: Attempt) -> dict[str, Any]:
    """One attempt: its job and nodes, when it was launched, its end, what was judged, first error and hang."""
    events = attempt.events()
    own = [event for event in events if event.get("verdict") != Verdict.LOST]  # which a later job wrote
    beats = [] if judged_or_ended(own) else [beat["time"] for beat in attempt.heartbeats()]
    launched, judged, ended = (_last(events, kind) for kind in ("launched", "judged", "ended"))
    return {
        "attempt": attempt.number,
        **{key: (launched or judged).get(key) for key in ("job", "job_id", "restart")},
        "nodes": launched.get("nodes", []),
        "spares": launched.get("spares", []),
        "began": events[0]["time"] if events else None,
        "seconds": round(max([own[-1]["time"], *beats]) - own[0]["time"], 1) if own else None,
        "exit_code": ended.get("exit_code"),
        "error": ended.get("error"),
        "asked": _last(events, "asked").get("why"),
        **{key: judged.get(key) for key in ("verdict", "action", "reason", "exclude")},
        "first_error": first_error(attempt, events),
        "hang": _fields(_last(events, "hang"), "time", "step", "seconds", "suspects", "stacks"),
    }


def judged_or_ended(events: Sequence[Event]) -> bool:
    """Whether the attempt's own word says that it is over."""
    return any(event["kind"] in {"judged", "ended"} for event in events)


def first_error(attempt: Attempt, events: Sequence[Event]) -> dict[str, Any] | None:
    """The earliest `failed` event, with the node of its rank; later ones are mostly its consequence."""
    failed = [event for event in events if event["kind"] == "failed"]
    if not failed:
        return None
    first = min(failed, key=lambda event: event["time"])
    told = _fields(first, "time", "rank", "what", "where", "fix", "exit_code") or {}
    return told | {"node": node_of(first.get("rank"), attempt, events), "log": _log(attempt, first.get("rank"))}


def node_of(rank: int | None, attempt: Attempt, events: Sequence[Event]) -> str | None:
    """The node a rank was on: from its own heartbeat, else from the order of the nodes at launch."""
    for beat in attempt.heartbeats():
        if beat["rank"] == rank and beat.get("host"):
            return str(beat["host"])
    launched = _last(events, "launched")
    nodes, processes = launched.get("nodes"), launched.get("processes")
    if rank is None or not nodes or not processes:
        return None
    return str(nodes[min(rank * len(nodes) // processes, len(nodes) - 1)])


def _log(attempt: Attempt, rank: int | None) -> str | None:
    return None if rank is None else str(attempt.log_path(rank))


def _last(events: Sequence[Event], kind: str) -> Event:
    return next((event for event in reversed(events) if event["kind"] == kind), {})


def _fields(event: Event, *names: str) -> dict[str, Any] | None:
    """Some fields of an event, or None where there is no event."""
    return {name: event.get(name) for name in names} if event else None
