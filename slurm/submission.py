"""A submission in full: the scripts of its jobs, what each waits for, and then, unless it is a dry run, the jobs."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from megavlm.platform.errors import ConfigError, MegaVLMError
from megavlm.platform.runs import RunFolder
from megavlm.platform.runs.folder import default_runs_root

from . import chains, jobs, send
from .chains import Chain
from .container import mounted
from .jobs import SubmittedJob
from .profile import ClusterProfile
from .script import JobScript, check_path, render
from .snapshot import Snapshot
from .work import Piece, Work, absolute, is_finished

PLACES = ("MEGAVLM_RUNS", "MEGAVLM_DEMO_DATA")  # folders that a job has to find where the submitting shell does


@dataclasses.dataclass(frozen=True)
class Planned:
    """One job to be. `waits`: groups of ids of jobs that are queued already (a job and its successors)."""

    piece: Piece
    job: JobScript
    text: str
    waits: list[list[int | str]]

    @property
    def script(self) -> Path:
        """Where the script will stand."""
        return self.job.run / "jobs" / self.job.name / jobs.SCRIPT

    def conditions(self, ids: Mapping[str, int | str]) -> list[list[int | str]]:
        """What it waits for as send.afterok takes it; `ids` are those of this submission's jobs, by name."""
        return [*self.waits, *([ids[name]] for name in self.piece.after if name in ids)]


@dataclasses.dataclass(frozen=True)
class Submission:
    """Jobs of one run, in an order in which they can be sent."""

    run: Path
    work: Work
    planned: list[Planned]
    snapshot: Snapshot

    def send(self, command: Sequence[str]) -> list[SubmittedJob]:
        """Make the run folder, and queue every job or none: raises SlurmError after taking back those sent before."""
        run = self.work.make_folder(command)
        self.snapshot.write(run)
        for planned in self.planned:
            send.write(run, planned.job, planned.text)
        run.path(jobs.CANCELLED).unlink(missing_ok=True)
        sent: dict[str, SubmittedJob] = {}
        for planned in self.planned:
            try:
                sent[planned.piece.name] = self._send(run, planned, sent)
            except MegaVLMError as error:
                raise _none_of(sent, planned, error) from None
        return list(sent.values())

    def _send(self, run: RunFolder, planned: Planned, sent: Mapping[str, SubmittedJob]) -> SubmittedJob:
        groups = planned.conditions({name: earlier.job_id for name, earlier in sent.items()})
        job, profile = planned.job, planned.job.profile
        record = SubmittedJob(
            name=job.name,
            job_id=0,
            cluster=profile.name,
            script=str(planned.script),
            nodes=job.nodes,
            spares=job.spares,
            gpus_per_node=profile.gpus_per_node,
            processes_per_node=profile.processes,
            command=list(job.command),
            after=[int(job_id) for group in groups for job_id in group],
            by="submit",
        )
        return send.send(run, record, send.afterok(groups))


def _none_of(sent: Mapping[str, SubmittedJob], planned: Planned, error: MegaVLMError) -> MegaVLMError:
    send.take_back(sent.values())
    before = ", ".join(f"{job.name} {job.job_id}" for job in sent.values())
    told = f"; nothing is queued: cancelled again: {before}" if sent else "; nothing is queued"
    return type(error)(f"job '{planned.job.name}': {error.what}{told}", where=error.where, fix=error.fix)


def prepare(
    work: Work, profile: ClusterProfile, nodes: int, spares: int, successor: bool, after: RunFolder | None
) -> Submission:
    """Everything but the queueing; writes nothing. Raises ConfigError for a run that has such jobs already, and for
    what they would wait for in vain."""
    run, snapshot, folder = RunFolder(check_path(work.run)), Snapshot.of_running(), Path.cwd()
    variables = passed_on(profile)
    places = [work.run, folder, *(Path(variables[name]) for name in PLACES if name in variables)]
    profile = mounted(profile, places)
    queued = {chain.name: chain for chain in chains.chains(run)}
    outside = _alive_groups(after) if after else []
    planned = []
    for piece in work.pieces:
        _check_free(piece, queued.get(piece.name))
        job = JobScript(
            run=work.run,
            name=piece.name,
            profile=profile,
            nodes=nodes,
            spares=spares,
            command=piece.command,
            code=snapshot.folder(run),
            folder=folder,
            python=sys.executable,
            variables=variables,
            successor=successor,
        )
        waits = [*outside, *_earlier(piece, work, queued)]
        planned.append(Planned(piece, job, render(job), waits))
    return Submission(work.run, work, planned, snapshot)


def passed_on(profile: ClusterProfile) -> dict[str, str]:
    """Variables of this shell that a job gets: folders of ours, by absolute path, and what the profile names."""
    places = {name: str(absolute(Path(os.environ[name]))) for name in PLACES if os.environ.get(name)}
    return {name: os.environ[name] for name in profile.pass_environment if name in os.environ} | places


def _check_free(piece: Piece, chain: Chain | None) -> None:
    if chain is not None and chain.alive:
        job, state = chain.shown[-1]
        what = f"job {job.job_id} does '{piece.name}' of this run already ({state.state})"
        raise ConfigError(what, where="--out", fix="wait for it, `megavlm cancel` the run first, or give another --out")


def _earlier(piece: Piece, work: Work, queued: Mapping[str, Chain]) -> list[list[int | str]]:
    """What a stage waits for that is not of this submission: jobs in the queue; what is finished needs no waiting."""
    mine = {other.name for other in work.pieces}
    groups = []
    for name in piece.after:
        if name in mine or is_finished(work.run, name):
            continue
        chain = queued.get(name)
        if chain is None or not chain.alive:
            fix = f"submit it too: --stage {name}, or leave --stage away"
            raise ConfigError(f"stage '{piece.name}' needs '{name}', which is not finished", where="--stage", fix=fix)
        groups.append(_alive(chain))
    return groups


def _alive_groups(after: RunFolder) -> list[list[int | str]]:
    """The jobs that have to end well before a run is done; none when it is. Raises ConfigError when one did not."""
    if after.finished:
        return []
    of_run = chains.chains(after)
    if not of_run:
        fix = f"give a run that was submitted; runs are in {default_runs_root()}"
        raise ConfigError(f"run '{after.name}' is not finished and has no jobs", where="--after", fix=fix)
    if trouble := chains.unreachable(of_run):
        raise ConfigError(f"the jobs of '{after.name}' cannot be asked for: {trouble}", where="--after")
    for chain in of_run:
        job, state = chain.jobs[-1]
        if not chain.alive and state.state != "COMPLETED":
            what = f"job {job.job_id} ({chain.name}) of run '{after.name}' did not end well: {state.state}"
            raise ConfigError(what, where="--after", fix=f"megavlm requeue {after.root}")
    return [_alive(chain) for chain in of_run if chain.alive]


def _alive(chain: Chain) -> list[int | str]:
    return [job.job_id for job, state in chain.jobs if state.alive]
