"""The jobs of a run that count today: of every name those submitted since a person last did, and their states."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from megavlm.platform.runs import RunFolder

from . import jobs, queue
from .jobs import SubmittedJob
from .queue import JobState


@dataclasses.dataclass(frozen=True)
class Chain:
    """The jobs of one name: the one a person submitted, and the successors that handed the work on where requeueing is
    forbidden, oldest first. A successor waits while its predecessor runs, so that several may live."""

    name: str
    jobs: list[tuple[SubmittedJob, JobState]]

    @property
    def running(self) -> list[JobState]:
        """The states of those that have nodes."""
        return [state for _, state in self.jobs if state.running]

    @property
    def waiting(self) -> list[JobState]:
        """The states of those in the queue."""
        return [state for _, state in self.jobs if state.waiting]

    @property
    def alive(self) -> bool:
        """Whether any of them may still do something."""
        return any(state.alive for _, state in self.jobs)

    @property
    def shown(self) -> list[tuple[SubmittedJob, JobState]]:
        """Those alive; the last one when none is."""
        return [job for job in self.jobs if job[1].alive] or self.jobs[-1:]


def submitted(run: RunFolder) -> dict[str, list[SubmittedJob]]:
    """Name -> its submissions since a person's last one, in the order in which the names came up."""
    found: dict[str, list[SubmittedJob]] = {}
    for job in jobs.history(run):
        earlier = found.setdefault(job.name, [])
        if job.by != "successor":
            earlier.clear()
        earlier.append(job)
    return found


def chains(run: RunFolder) -> list[Chain]:
    """The run's chains with the states that Slurm tells now: one question."""
    return ask({run.name: submitted(run)})[run.name]


def ask(runs: Mapping[str, Mapping[str, Iterable[SubmittedJob]]]) -> dict[str, list[Chain]]:
    """The chains of many runs, by the run's name: one question for all of them."""
    ids = [job.job_id for names in runs.values() for each in names.values() for job in each]
    states = queue.ask(ids)
    return {
        run: [Chain(name, [(job, states[job.job_id]) for job in each]) for name, each in names.items()]
        for run, names in runs.items()
    }


def unreachable(chains: Iterable[Chain]) -> str | None:
    """Why Slurm could not be asked, where it could not."""
    states = (state for chain in chains for _, state in chain.jobs)
    return next((state.reason for state in states if state.state == queue.UNREACHABLE), None)
