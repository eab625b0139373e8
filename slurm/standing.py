"""Where a run stands: what its files say and what Slurm says of its jobs, in one word, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .chains import Chain, unreachable
from .queue import UNKNOWN, JobState
from .reasons import explain
from .supervisor.policy import Verdict

STOP = "stop"  # the action of a judgement after which nothing is tried again
REQUEUE = "megavlm requeue {run}"
ADVICE = {
    "blocked": None,  # the job's reason says it
    "cancelled": "it goes on with: " + REQUEUE,
    "failed": "megavlm logs {run} --errors; mend it, then: " + REQUEUE,
    "lost": "its job is gone ({jobs}) while the folder says that it runs; it goes on with: " + REQUEUE,
    "saved": "it goes on with: " + REQUEUE,
    "silent": "megavlm logs {run} shows the last it said; megavlm cancel {run} --now gives its nodes back",
    "stopped": "it goes on with: " + REQUEUE,
}


def overall(facts: dict[str, Any], last: dict[str, Any] | None, chains: Sequence[Chain]) -> str:
    """The state of a run that has jobs; `facts` as describe() tells them, `last` its last attempt.

    Beside describe()'s states: "starting" (a job has its nodes, no attempt yet), "blocked" (waits for what will not
    come by itself), "lost" (the folder says it runs, and no job does).
    """
    told = str(facts["state"])
    if told == "finished" or not chains or unreachable(chains):
        return told
    running = [state for chain in chains for state in chain.running]
    waiting = [state for chain in chains for state in chain.waiting]
    if running:
        return "starting" if last is None else "silent" if told == "silent" else "running"
    if waiting:
        return "blocked" if all(blocked(state) for state in waiting) else "queued"
    return _over(told, last, [chain.jobs[-1][1] for chain in chains])


def _over(told: str, last: dict[str, Any] | None, states: Sequence[JobState]) -> str:
    """No job of the run lives."""
    names = {state.state for state in states}
    done = names == {"COMPLETED"} or (len(states) == 1 and last is not None and last["verdict"] == Verdict.FINISHED)
    if told in {"queued", "stopped"} and done:
        return "finished"
    if told == "queued":
        return "lost" if UNKNOWN in names else "cancelled" if names <= {"CANCELLED", "COMPLETED"} else "failed"
    if told == "stopped" and last and last["action"] == STOP:
        return "failed"
    if told in {"running", "silent"}:
        by_hand = last is not None and last["job_id"] is None
        forgotten = told == "running" and UNKNOWN in names  # it gives signs of life: another cluster's, perhaps
        return told if by_hand or forgotten else "lost"
    return told


def blocked(state: JobState) -> bool:
    """Whether a waiting job waits for what will not come by itself."""
    return state.state != "PENDING" or explain(state.reason or "None").blocked


def advice(run: str, state: str, chains: Sequence[Chain]) -> str | None:
    """What to do about a run in this state, where there is something to do and jobs to do it with."""
    text = ADVICE.get(state)
    if text is None or not chains:
        return None
    ended = ", ".join(f"{job.job_id} {known.state}" for chain in chains for job, known in chain.jobs[-1:])
    return text.format(run=run, jobs=ended)


def jobs(run: str, chains: Sequence[Chain]) -> list[dict[str, Any]]:
    """The jobs worth showing as plain data, with a waiting one's reason in plain words."""
    return [_job(run, chain.name, state) for chain in chains for _, state in chain.shown]


def _job(run: str, name: str, state: JobState) -> dict[str, Any]:
    told = {"name": name, "job_id": state.job_id, "state": state.state, "reason": state.reason}
    told |= {"nodes": state.nodes, "starts": state.starts, "tasks": state.tasks}
    if not state.waiting:
        return told | {"means": None, "fix": None}
    reason = explain(state.reason or "None")
    return told | {"means": reason.text, "fix": reason.fix.format(job=state.job_id, run=run)}
