"""Before anything starts: a job may find that there is nothing left for it to do."""

from __future__ import annotations

from collections.abc import Sequence

from megavlm.platform.runs import Attempt, RunFolder

from .. import jobs
from ..chains import submitted
from ..commands import SlurmError
from .allocation import look
from .watch import TRAINING

PATIENCE = 20.0
CANCELLED_CODE = 4  # nothing failed, and nothing that waits for this job may start


def nothing_to_do(
    run: RunFolder, name: str, me: int, verb: Sequence[str], attempts: Sequence[Attempt]
) -> tuple[int, str] | None:
    """The exit code to end with at once, and why; None when there is work."""
    if run.path(jobs.CANCELLED).exists():
        return CANCELLED_CODE, "the run is cancelled; `megavlm requeue RUN` takes it up again"
    if is_finished(run, verb):
        return 0, "what this job is for is finished"
    if (code := _stopped(attempts, me)) is not None:
        return code, "the job that this one succeeds stopped for good"
    if predecessor := _cancelled_predecessor(run, name, me, attempts):
        return CANCELLED_CODE, f"job {predecessor}, which this one succeeds, was cancelled"
    return None


def is_finished(run: RunFolder, verb: Sequence[str]) -> bool:
    """Whether a training that this job is for is done already; other verbs see that for themselves."""
    if not verb or verb[0] not in TRAINING:
        return False
    stages = [after for word, after in zip(verb, verb[1:], strict=False) if word == "--stage"]
    stages += [word.partition("=")[2] for word in verb if word.startswith("--stage=")]
    return run.path("stages", stages[-1], "finished").exists() if stages else run.finished


def _stopped(attempts: Sequence[Attempt], me: int) -> int | None:
    """The exit code of the job before this one, when it decided to stop."""
    judged = [event for attempt in attempts for event in attempt.events() if event["kind"] == "judged"]
    if not judged or judged[-1]["action"] != "stop" or judged[-1].get("job_id") == me:
        return None
    return int(judged[-1].get("exit_code", 1))


def _cancelled_predecessor(run: RunFolder, name: str, me: int, attempts: Sequence[Attempt]) -> int | None:
    """The job before this one, if a person ended it; a job ended to hand its work on says so in its last attempt."""
    ids = [job.job_id for job in submitted(run).get(name, [])]
    if me not in ids or ids.index(me) == 0:
        return None
    before = ids[ids.index(me) - 1]
    try:
        job = look(before, PATIENCE)
    except SlurmError:  # Slurm has forgotten it
        return None
    told = [event for attempt in attempts[-1:] for event in attempt.events() if event["kind"] == "judged"]
    handed_on = any(event["action"] == "leave" and event.get("job_id") == before for event in told)
    return before if job.state == "CANCELLED" and not job.preempted and not handed_on else None
