"""`megavlm cancel`: a run saves and stops, and nothing of it is started again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from megavlm.platform.cli import parser
from megavlm.platform.runs import RunFolder, find_run
from megavlm.platform.runs.lines import write_whole
from megavlm.platform.runs.state import describe

from . import chains, jobs
from .attempts import describe as describe_attempt
from .chains import Chain
from .commands import SlurmError, attempt
from .status import RUN_HELP

OVER_ALREADY = ("Invalid job id", "already completing", "already finished", "completed")


def main(argv: Sequence[str]) -> int:
    """Stop a run."""
    p = parser("cancel", epilog="examples:\n  megavlm cancel runs/nvlm-d-mini\n  megavlm cancel nvlm-d-mini --now")
    p.add_argument("run", help=RUN_HELP)
    p.add_argument("--now", action="store_true", help="end its jobs at once; what was not saved is lost")
    args = p.parse_args(argv)
    told = cancel(find_run(args.run), args.now)
    print(json.dumps(told, indent=2) if args.json else "\n".join(_lines(told)))
    return 0


def cancel(run: RunFolder, now: bool = False) -> dict[str, Any]:
    """Stop the run; returns what was done: ids `removed` from the queue, `asked` to save and stop, `ended` at once.

    The file `cancelled` comes first: a job that starts or ends meanwhile sees it. Raises SlurmError when Slurm does not
    answer; the run is marked then, and the same command does the rest.
    """
    told: dict[str, Any] = {"run": run.name, "folder": str(run.root), "marked": False}
    told |= {"removed": [], "asked": [], "ended": [], "attempt": None}
    if jobs.current(run) and not run.finished:
        write_whole(run.path(jobs.CANCELLED), json.dumps({"time": round(time.time(), 3)}))
        told["marked"] = True
    found = chains.chains(run)
    if trouble := chains.unreachable(found):
        fix = "nothing of it will be requeued; give the same command again when `scontrol ping` answers"
        raise SlurmError(f"Slurm could not be asked to stop '{run.name}': {trouble}", where=str(run.root), fix=fix)
    if now:
        told["ended"] = _scancel(chain_ids(found))
    else:
        told |= _gently(found)
    if not any(chain.alive for chain in found):
        told["attempt"] = _by_hand(run)
    return told


def _gently(found: Sequence[Chain]) -> dict[str, list[int]]:
    """What waits leaves the queue, tasks of arrays included; what runs is asked.

    Only its batch shell is: a signal to a job's steps reaches every process in them.
    """
    waiting = [state.job_id for chain in found for state in chain.waiting]
    running = [state.job_id for chain in found for state in chain.running]
    _scancel([*waiting, *running], "--state=PENDING")
    return {"removed": waiting, "asked": _scancel(running, "--signal=USR1", "--batch")}


def chain_ids(found: Iterable[Chain]) -> list[int]:
    """The ids of the jobs that live."""
    return [state.job_id for chain in found for _, state in chain.jobs if state.alive]


def _scancel(job_ids: list[int], *options: str) -> list[int]:
    """Tell Slurm, and return the ids. One that is over by now is none to complain about."""
    if not job_ids:
        return []
    done = attempt("scancel", *options, *map(str, job_ids))
    complaints = [line for line in done.stderr.splitlines() if not any(words in line for words in OVER_ALREADY)]
    if done.returncode and complaints:
        raise SlurmError(
            f"scancel failed: {complaints[0]}", where=" ".join(["scancel", *options]), fix="megavlm status"
        )
    return job_ids


def _by_hand(run: RunFolder) -> dict[str, Any] | None:
    """Ask an attempt that no job made, if one seems to run: it looks into its folder, wherever it is."""
    attempts = run.attempts()
    if describe(run)["state"] not in {"running", "silent"} or describe_attempt(attempts[-1])["job_id"] is not None:
        return None
    attempts[-1].request_save()
    started = next((event for event in attempts[-1].events() if event["kind"] == "started"), {})
    return {"attempt": attempts[-1].number, "pid": started.get("pid"), "host": started.get("host")}


def _lines(told: dict[str, Any]) -> Iterator[str]:
    for key, text in (
        ("ended", "ended at once"), ("asked", "asked to save and stop"), ("removed", "removed from the queue"),
    ):  # fmt: skip
        if told[key]:
            yield f"{text}: {', '.join(f'job {job_id}' for job_id in told[key])}"
    if by_hand := told["attempt"]:
        place = f"process {by_hand['pid']} on {by_hand['host']}" if by_hand["pid"] else "its process"
        yield f"asked attempt {by_hand['attempt']} to save and stop ({place}; kill ends it without saving)"
    elif not (told["ended"] or told["asked"] or told["removed"]):
        yield f"nothing of {told['run']} runs or waits"
    if told["marked"]:
        yield f"nothing of it will be started again before: megavlm requeue {told['folder']}"
