"""From a rendered script to a queued job: its folder is filled, sbatch is told, and the run writes the job down."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from megavlm.platform.runs import RunFolder
from megavlm.platform.runs.lines import write_whole

from . import commands, jobs
from .jobs import SubmittedJob
from .script import JobScript


def write(run: RunFolder, job: JobScript, text: str) -> Path:
    """RUN/jobs/NAME with the script and the resolved profile, which the job reads; returns the script's path."""
    folder = jobs.folder(run, job.name).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    profile = yaml.safe_dump(job.profile.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_whole(folder / jobs.PROFILE, profile)
    write_whole(folder / jobs.SCRIPT, text)
    return folder / jobs.SCRIPT


def afterok(groups: Iterable[Sequence[int | str]]) -> str | None:
    """Slurm's words for: every group has ended well. A group is a job and its successors, oldest first, of which one
    has to. Slurm joins conditions by "all" or by "any", not by both: of several groups the newest job counts."""
    alive = [group for group in groups if group]
    if not alive:
        return None
    if len(alive) == 1:
        return "?".join(f"afterok:{job_id}" for job_id in alive[0])
    return ",".join(f"afterok:{group[-1]}" for group in alive)


def sbatch_words(script: Path | str, dependency: str | None = None) -> list[str]:
    """The command line. A job whose condition can never come true is cancelled instead of waiting for ever."""
    waits = [f"--dependency={dependency}", "--kill-on-invalid-dep=yes"] if dependency else []
    return ["sbatch", "--parsable", *waits, str(script)]


def send(run: RunFolder, job: SubmittedJob, dependency: str | None = None) -> SubmittedJob:
    """Submit `job.script`, unless given otherwise after the jobs `job.after`; returns the job with its id.

    The job gets little of our environment (commands.KEPT). Raises SlurmError when Slurm refuses.
    """
    condition = dependency or afterok([job_id] for job_id in job.after)
    job_id = int(commands.run(*sbatch_words(job.script, condition)).split(";")[0])
    sent = dataclasses.replace(job, job_id=job_id)
    jobs.add(run, sent)
    return sent


def take_back(sent: Iterable[SubmittedJob]) -> None:
    """Cancel jobs that were submitted for nothing, as far as Slurm lets us."""
    ids = [str(job.job_id) for job in sent]
    if ids:
        with contextlib.suppress(commands.SlurmError):
            commands.run("scancel", *ids)
