"""RUN/jobs.jsonl: which jobs a run has had. The only thing that ties a run folder to a scheduler."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal

from megavlm.platform.runs import RunFolder
from megavlm.platform.runs.lines import append_line, read_lines

FILE = "jobs.jsonl"
By = Literal["submit", "requeue", "successor"]


@dataclasses.dataclass(frozen=True)
class SubmittedJob:
    """One submission. `name` is the stage, or the verb; `after` are the ids of the jobs it waits for.

    `by`: a person, through `submit` or `requeue` (the budget of attempts starts anew), or a job that had to hand on.
    """

    name: str
    job_id: int
    cluster: str
    script: str
    nodes: int
    spares: int
    gpus_per_node: int
    processes_per_node: int
    command: list[str]
    after: list[int]
    by: By
    time: float = 0.0

    def record(self) -> dict[str, Any]:
        """Plain data under stable keys."""
        return dataclasses.asdict(self)


def add(run: RunFolder, job: SubmittedJob) -> None:
    """Write a submission down, with the present time."""
    run.root.mkdir(parents=True, exist_ok=True)
    append_line(run.path(FILE), job.record() | {"time": round(time.time(), 3)})


def history(run: RunFolder) -> list[SubmittedJob]:
    """Every submission, oldest first."""
    known = {field.name for field in dataclasses.fields(SubmittedJob)}
    lines = [line for line in read_lines(run.path(FILE)) if known <= line.keys()]  # not those of another version
    return [SubmittedJob(**{key: line[key] for key in known}) for line in lines]


def current(run: RunFolder) -> dict[str, SubmittedJob]:
    """Name -> its last submission, in the order in which the names came up."""
    return {job.name: job for job in history(run)}


def folder(run: RunFolder, name: str) -> Path:
    """RUN/jobs/NAME: the submitted script, the cluster profile it was rendered from, and the job's own log."""
    return run.path("jobs", name)


SCRIPT, PROFILE, LOG = "sbatch.sh", "cluster.yaml", "slurm-%j.log"
CANCELLED = "cancelled"  # a file of the run: a person said stop, so nothing is requeued
