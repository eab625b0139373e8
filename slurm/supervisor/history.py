"""The attempts of this job since a person last submitted it, read back from their events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megavlm.platform.runs import Attempt, RunFolder

from ..chains import submitted
from .policy import Ending, Verdict
from .say import say, tell

Event = Mapping[str, Any]


def job_ids(run: RunFolder, name: str, me: int) -> set[int]:
    """Those whose attempts count against one budget: of this job and of those it succeeds.

    A submission that is not written down yet stands alone: the list still ends with an earlier one.
    """
    listed = {job.job_id for job in submitted(run).get(name, [])}
    return listed if me in listed else {me}


def attempts_of(run: RunFolder, name: str, ids: set[int]) -> list[Attempt]:
    """The attempts that these jobs made under this name, oldest first."""
    return [one for one in run.attempts() if any(_is_of(event, name, ids) for event in one.events())]


def past(attempts: Sequence[Attempt]) -> list[Ending]:
    """How each of them ended."""
    return [ending_of(attempt.events()) for attempt in attempts]


def ending_of(events: Sequence[Event]) -> Ending:
    """One attempt's ending as it was judged; "lost" when nobody was left to judge it."""
    judged = next((event for event in reversed(events) if event["kind"] == "judged"), {})
    suspects = {one["node"] for event in events if event["kind"] == "hang" for one in event["suspects"]}
    known = judged.get("verdict") in set(Verdict)
    return Ending(
        verdict=Verdict(judged["verdict"]) if known else Verdict.LOST,
        code=judged.get("exit_code", 1),
        reason=judged.get("reason", ""),
        progress=made_progress(events),
        bad=tuple(judged.get("exclude", ())),
        suspects=tuple(sorted(suspects - {None})),
    )


def made_progress(events: Sequence[Event]) -> bool:
    """Whether an attempt saved anything that the next one goes on from."""
    return any(event["kind"] == "saved" for event in events)


def close_lost(attempts: Sequence[Attempt], **job: Any) -> None:
    """Say of attempts without a judgement what became of them: their supervisor went with them."""
    for attempt in attempts:
        if all(event["kind"] != "judged" for event in attempt.events()):
            reason = "Slurm took the job away while it ran: preempted, or a node failed"
            say(f"attempt {attempt.number} was lost; {reason}")
            tell(attempt, "judged", verdict=Verdict.LOST, action="leave", reason=reason, exclude=[], exit_code=1, **job)


def _is_of(event: Event, name: str, ids: set[int]) -> bool:
    return event.get("job") == name and event.get("job_id") in ids
