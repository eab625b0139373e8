"""`megavlm status` and `megavlm logs`."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..cli import parser
from ..errors import InputError
from .attempt import Attempt
from .folder import find_run
from .state import describe

RUN_HELP = "a run folder, or a run's name under $MEGAVLM_RUNS (default ./runs)"


def status_main(argv: Sequence[str]) -> int:
    """What a run is doing."""
    p = parser("status", epilog="example: megavlm status runs/nvlm-d-mini --json")
    p.add_argument("run", help=RUN_HELP)
    args = p.parse_args(argv)
    facts = describe(find_run(args.run))
    print(json.dumps(facts, indent=2) if args.json else "\n".join(_status_lines(facts)))
    return 0


def _status_lines(facts: dict[str, Any]) -> Iterator[str]:
    yield f"{facts['name']}: {facts['state']}, attempt {facts['attempts']}, {facts['folder']}"
    if facts["error"]:
        yield f"  error    {facts['error']}"
    if facts["saved_step"] is not None:
        yield f"  saved    step {facts['saved_step']}; the same command resumes"
    if facts["metrics"]:
        yield "  metrics  " + ", ".join(f"{key} {_number(value)}" for key, value in facts["metrics"].items())
    for rank in facts["ranks"]:
        yield f"  rank {rank['rank']:<4}step {rank['step']}, heard {rank['seconds_ago']:.0f} s ago"
    if facts["report"]:
        yield f"  report   {facts['report']}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def logs_main(argv: Sequence[str]) -> int:
    """The last lines of a run's logs."""
    p = parser("logs", epilog="example: megavlm logs runs/nvlm-d-mini --rank 0 --lines 100")
    p.add_argument("run", help=RUN_HELP)
    p.add_argument("--attempt", type=int, help="default: the last one")
    p.add_argument("--rank", type=int, help="only this global rank")
    p.add_argument("--lines", type=int, default=50, help="how many of each file, counted from its end (default 50)")
    args = p.parse_args(argv)
    attempt = _choose_attempt(args.run, args.attempt)
    files = [attempt.log_path(args.rank)] if args.rank is not None else sorted(attempt.logs.rglob("*.log"))
    tails = {str(path): _tail(path, args.lines) for path in files}
    if args.json:
        print(json.dumps({"attempt": attempt.number, "logs": tails}, indent=2))
    else:
        print("\n".join(line for path, lines in tails.items() for line in [f"== {path}", *lines]))
    return 0


def _choose_attempt(name: str, number: int | None) -> Attempt:
    attempts = find_run(name).attempts()
    chosen = [attempt for attempt in attempts if number in (None, attempt.number)]
    if not chosen:
        has = ", ".join(str(attempt.number) for attempt in attempts) or "none"
        raise InputError(f"run '{name}' has no attempt {number or ''}".rstrip(), fix=f"attempts there: {has}")
    return chosen[-1]


def _tail(path: Path, lines: int) -> list[str]:
    if not path.exists():
        raise InputError(f"no log '{path.name}'", where=str(path.parent), fix="leave --rank out to see every log")
    with path.open(errors="replace") as stream:
        return [line.rstrip("\n") for line in deque(stream, maxlen=max(lines, 0))]
