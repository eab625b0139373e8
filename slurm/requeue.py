"""`megavlm requeue`: what a run has left to do goes back into the queue, with a new budget of attempts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megavlm.platform.cli import parser
from megavlm.platform.errors import InputError, did_you_mean
from megavlm.platform.runs import RunFolder, find_run

from . import attempts, chains, jobs, queue
from .chains import Chain
from .commands import SlurmError
from .jobs import SubmittedJob
from .send import afterok, send, take_back
from .status import RUN_HELP
from .supervisor.begin import is_finished
from .supervisor.policy import Verdict


@dataclasses.dataclass(frozen=True)
class Again:
    """A job to submit once more. `after` are names of others of this run, `beyond` ids of other runs' jobs."""

    job: SubmittedJob
    after: list[str]
    beyond: list[int]


def main(argv: Sequence[str]) -> int:
    """Run it again where it stopped."""
    p = parser(
        "requeue", epilog="examples:\n  megavlm requeue runs/nvlm-d-mini --dry-run\n  megavlm requeue nvlm-d-mini"
    )
    p.add_argument("run", help=RUN_HELP)
    p.add_argument("--stage", metavar="NAME", help="only the job of this stage, or of this name")
    p.add_argument("--dry-run", action="store_true", help="tell what would be submitted, and do nothing")
    args = p.parse_args(argv)
    run = find_run(args.run)
    known = chains.chains(run)
    todo = plan(run, known, args.stage)
    sent = {} if args.dry_run else submit(run, todo, known)
    told = {"run": run.name, "folder": str(run.root), "dry_run": args.dry_run}
    told |= {"jobs": [_told(each, sent.get(each.job.name)) for each in todo]}
    print(json.dumps(told, indent=2) if args.json else "\n".join(_lines(told)))
    return 0


def plan(run: RunFolder, known: Sequence[Chain], stage: str | None = None) -> list[Again]:
    """The jobs of the run, or the one of `stage`, that are neither finished nor alive, in the order they were first
    submitted in. Raises InputError when there is none, and SlurmError when Slurm cannot be asked."""
    if trouble := chains.unreachable(known):
        fix = "give the same command again when `scontrol ping` answers"
        raise SlurmError(f"nobody can tell whether '{run.name}' still runs: {trouble}", where=str(run.root), fix=fix)
    chosen = _chosen(run, known, stage)
    ended = [chain for chain in chosen if not chain.alive and not finished(run, chain)]
    if not ended:
        raise _nothing_left(run, chosen)
    return [_again(run, chain) for chain in ended]


def _chosen(run: RunFolder, known: Sequence[Chain], stage: str | None) -> list[Chain]:
    if not known:
        what = f"run '{run.name}' was never submitted"
        raise InputError(
            what, where=str(run.root), fix="megavlm submit RECIPE --cluster NAME, or its own command again"
        )
    chosen = [chain for chain in known if stage in (None, chain.name)]
    if not chosen:
        fix = did_you_mean(str(stage), [chain.name for chain in known])
        raise InputError(f"run '{run.name}' has no job '{stage}'", where="--stage", fix=fix)
    return chosen


def _nothing_left(run: RunFolder, chosen: Sequence[Chain]) -> InputError:
    alive = [(chain.name, state) for chain in chosen for _, state in chain.jobs if state.alive]
    if not alive:
        return InputError(
            f"run '{run.name}' is finished: {', '.join(chain.name for chain in chosen)}", where=str(run.root)
        )
    told = ", ".join(f"job {state.job_id} ({name}) is {state.state.lower()}" for name, state in alive)
    return InputError(told, where=str(run.root), fix=f"wait for it, or first: megavlm cancel {run.root}")


def finished(run: RunFolder, chain: Chain) -> bool:
    """Whether nothing is left of what the chain's jobs were for, by the run's files, Slurm's word, or our judgement."""
    job, state = chain.jobs[-1]
    if run.finished or is_finished(run, job.command) or state.state == "COMPLETED":
        return True
    ids = {each.job_id for each, _ in chain.jobs}
    judged = [told["verdict"] for told in attempts.attempts(run) if told["job_id"] in ids]
    return judged[-1:] == [Verdict.FINISHED]


def _again(run: RunFolder, chain: Chain) -> Again:
    """The job as a person submitted it: a successor is its copy, and waits for nothing."""
    first = chain.jobs[0][0]
    script = Path(first.script)
    if not script.is_file():
        raise InputError(f"the script of '{chain.name}' is gone", where=str(script), fix="megavlm submit it anew")
    names = {job.job_id: job.name for job in jobs.history(run)}
    waits = [names[job_id] for job_id in first.after if job_id in names]
    return Again(first, list(dict.fromkeys(waits)), [job_id for job_id in first.after if job_id not in names])


def submit(run: RunFolder, todo: Sequence[Again], known: Sequence[Chain]) -> dict[str, SubmittedJob]:
    """Send the jobs, each after those it waits for, and let the run start again; name -> the new job.

    When Slurm refuses one, those before it are taken back, and SlurmError says why.
    """
    mark = run.path(jobs.CANCELLED)
    cancelled = mark.read_text() if mark.exists() else None
    mark.unlink(missing_ok=True)  # before the first of them looks for it
    sent: dict[str, SubmittedJob] = {}
    try:
        for each in todo:
            groups = _groups(each, sent, known)
            job = dataclasses.replace(each.job, after=[group[-1] for group in groups], by="requeue")
            sent[job.name] = send(run, job, afterok(groups))
    except SlurmError:
        take_back(sent.values())
        if cancelled is not None:
            mark.write_text(cancelled)
        raise
    return sent


def _groups(each: Again, sent: Mapping[str, SubmittedJob], known: Sequence[Chain]) -> list[list[int]]:
    """The jobs to wait for: of this run those sent now or still alive, and of others what is alive."""
    alive = {chain.name: [state.job_id for _, state in chain.jobs if state.alive] for chain in known}
    groups = [[sent[name].job_id] if name in sent else alive.get(name, []) for name in each.after]
    beyond = [[job_id] for job_id, state in queue.ask(each.beyond).items() if state.alive]
    return [group for group in [*groups, *beyond] if group]


def _told(each: Again, sent: SubmittedJob | None) -> dict[str, Any]:
    told = {"name": each.job.name, "job_id": sent.job_id if sent else None, "was": each.job.job_id}
    return told | {"after": sent.after if sent else each.after, "nodes": each.job.nodes, "script": each.job.script}


def _lines(told: dict[str, Any]) -> Iterator[str]:
    for job in told["jobs"]:
        what = f"would submit {job['name']}" if told["dry_run"] else f"job {job['job_id']}: {job['name']}"
        after = f", after {', '.join(map(str, job['after']))}" if job["after"] else ""
        yield f"{what} on {job['nodes']} nodes{after} ({job['script']})"
    if not told["dry_run"]:
        yield f"see: megavlm status {told['folder']}"
