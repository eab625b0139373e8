"""`megavlm logs`: the ends of a run's logs, its first errors, or all of it as it comes, across requeues."""

from __future__ import annotations

import argparse
import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from megavlm.platform.cli import parser
from megavlm.platform.errors import InputError
from megavlm.platform.runs import Attempt, RunFolder, find_run

from . import jobs
from .first_errors import first_errors
from .follow import follow, label
from .status import RUN_HELP


def main(argv: Sequence[str]) -> int:
    """What a run has said."""
    args = _arguments(argv)
    run = find_run(args.run)
    if args.errors:
        return _tell_errors(run, args.attempt, args.json)
    if args.follow:
        if args.json:
            raise InputError("--follow has no end that JSON could have", fix="leave one of --follow and --json out")
        for line in follow(lambda: _files(run, args.attempt, args.rank, args.job), run, args.lines, args.merge):
            print(line, flush=True)
        return 0
    tails = {path: _tail(path, args.lines) for path in _files(run, args.attempt, args.rank, args.job)}
    if args.json:
        number = None if args.job is not None else _attempt(run, args.attempt).number
        print(json.dumps({"attempt": number, "logs": {str(path): lines for path, lines in tails.items()}}, indent=2))
    else:
        print("\n".join(_merged(tails) if args.merge else _one_after_another(tails)))
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    p = parser(
        "logs", epilog="examples:\n  megavlm logs nvlm-d-mini --rank 0 --follow\n  megavlm logs nvlm-d-mini --errors"
    )
    p.add_argument("run", help=RUN_HELP)
    p.add_argument("--attempt", type=int, help="default: the last one")
    p.add_argument("--rank", type=int, help="only this global rank")
    p.add_argument("--lines", type=int, default=50, help="how many of each file, counted from its end (default 50)")
    p.add_argument("--merge", action="store_true", help="one list, each line with its rank before it")
    p.add_argument("--follow", action="store_true", help="go on as they grow, through requeues, until the run is over")
    what = p.add_mutually_exclusive_group()
    what.add_argument("--errors", action="store_true", help="the first error of each rank, the earliest first")
    what.add_argument("--job", nargs="?", const="", metavar="NAME", help="the logs of the jobs themselves, or of one")
    return p.parse_args(argv)


def _files(run: RunFolder, attempt: int | None, rank: int | None, job: str | None) -> list[Path]:
    """The log files asked for; the jobs' own where there is no attempt yet. Raises InputError when there are none."""
    if job is None and (run.attempts() or attempt is not None or not jobs.current(run)):
        chosen = _attempt(run, attempt)
        if rank is None:
            return sorted(chosen.logs.rglob("*.log"))
        path = chosen.log_path(rank)
        if not path.exists():
            raise InputError(f"no log '{path.name}'", where=str(path.parent), fix="leave --rank out to see every log")
        return [path]
    return _job_files(run, job or "")


def _job_files(run: RunFolder, name: str) -> list[Path]:
    names = list(jobs.current(run))
    if name and name not in names:
        raise InputError(f"run '{run.name}' has no job '{name}'", fix=f"jobs there: {', '.join(names) or 'none'}")
    pattern = jobs.LOG.replace("%j", "*")
    files = [path for each in ([name] if name else names) for path in jobs.folder(run, each).glob(pattern)]
    return sorted(files, key=lambda path: path.stat().st_mtime)


def _attempt(run: RunFolder, number: int | None) -> Attempt:
    attempts = run.attempts()
    chosen = [attempt for attempt in attempts if number in (None, attempt.number)]
    if not chosen:
        has = ", ".join(str(attempt.number) for attempt in attempts) or "none"
        raise InputError(f"run '{run.name}' has no attempt {number or ''}".rstrip(), fix=f"attempts there: {has}")
    return chosen[-1]


def _tail(path: Path, lines: int) -> list[str]:
    with path.open(errors="replace") as stream:
        return [line.rstrip("\n") for line in deque(stream, maxlen=max(lines, 0))]


def _one_after_another(tails: dict[Path, list[str]]) -> Iterator[str]:
    for path, lines in tails.items():
        yield f"== {path}"
        yield from lines


def _merged(tails: dict[Path, list[str]]) -> Iterator[str]:
    for path, lines in tails.items():
        yield from (f"{label(path)}: {line}" for line in lines)


def _tell_errors(run: RunFolder, number: int | None, as_json: bool) -> int:
    """Those of the attempt asked for, else of the last one that has any."""
    candidates = [_attempt(run, number)] if number is not None or not run.attempts() else reversed(run.attempts())
    found = next(((attempt, errors) for attempt in candidates if (errors := first_errors(attempt))), None)
    told = [] if found is None else found[1]
    if as_json:
        print(json.dumps({"attempt": found[0].number if found else None, "errors": told}, indent=2))
        return 0
    if found is None:
        print(f"no error in the logs of {run.name}")
    for error in told:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(error["time"]))
        who = f"rank {error['rank']}" if error["rank"] is not None else Path(error["log"]).name
        print("\n".join([f"== {who} on {error['node'] or 'an unknown node'}, {when}, {error['log']}", *error["lines"]]))
    return 0
