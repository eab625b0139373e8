"""`megavlm status`: one run, or every run in a line each; from files and one question to the scheduler."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from megavlm.platform.cli import parser
from megavlm.platform.runs import RunFolder, all_runs, default_runs_root, find_run
from megavlm.platform.runs.state import describe

from . import attempts, chains, standing
from .chains import Chain
from .hours import KINDS, hours
from .jobs import SubmittedJob

RUN_HELP = "a run folder, or a run's name under $MEGAVLM_RUNS (default ./runs)"
SHOWN_RANKS = 16  # of more, only those that have been silent longest


def main(argv: Sequence[str]) -> int:
    """What a run is doing, or all of them."""
    p = parser("status", epilog="examples:\n  megavlm status runs/nvlm-d-mini --json\n  megavlm status")
    p.add_argument("run", nargs="?", help=f"{RUN_HELP}; without one, every run there")
    args = p.parse_args(argv)
    facts = one(find_run(args.run)) if args.run else every()
    lines = run_lines(facts) if args.run else table_lines(facts)
    print(json.dumps(facts, indent=2) if args.json else "\n".join(lines))
    return 0


def one(run: RunFolder) -> dict[str, Any]:
    """All that is known of one run, as plain data."""
    history = attempts.attempts(run)
    of_run = chains.chains(run)
    facts = _with_jobs(describe(run), history[-1] if history else None, of_run)
    newest = list(reversed(history))
    return facts | {
        "first_error": next((each["first_error"] for each in newest if each["first_error"]), None),
        "hang": next((each["hang"] for each in newest if each["hang"]), None),
        "history": history,
        "hours": hours(run),
        "scheduler": chains.unreachable(of_run),
    }


def every() -> dict[str, Any]:
    """Every run under the runs' root, with one question to the scheduler for those that are not finished."""
    told = [(run, *_glance(run)) for run in all_runs()]
    by_run = chains.ask({run.name: submitted for run, facts, submitted in told if facts["state"] != "finished"})
    rows = [_row(run, facts, by_run.get(run.name, [])) for run, facts, _ in told]
    asked = [chain for each in by_run.values() for chain in each]
    return {"root": str(default_runs_root()), "runs": rows, "scheduler": chains.unreachable(asked)}


def _glance(run: RunFolder) -> tuple[dict[str, Any], dict[str, list[SubmittedJob]]]:
    """A run's files and jobs. One that cannot be read, such as somebody else's, must not hide the others."""
    try:
        return describe(run), chains.submitted(run)
    except (OSError, ValueError, KeyError, TypeError) as error:
        told = {"name": run.name, "folder": str(run.root), "state": "unreadable", "attempts": 0, "step": None}
        return told | {"saved_step": None, "error": f"{type(error).__name__}: {error}"}, {}


def _row(run: RunFolder, facts: dict[str, Any], of_run: list[Chain]) -> dict[str, Any]:
    last = attempts.describe(run.attempts()[-1]) if facts["attempts"] and of_run else None
    told = _with_jobs(facts, last, of_run)
    return {key: told[key] for key in told if key not in {"ranks", "metrics", "report"}}


def _with_jobs(facts: dict[str, Any], last: dict[str, Any] | None, of_run: list[Chain]) -> dict[str, Any]:
    state = standing.overall(facts, last, of_run)
    return facts | {
        "state": state,
        "reason": last["reason"] if last else None,
        "advice": standing.advice(facts["folder"], state, of_run),
        "jobs": standing.jobs(facts["folder"], of_run),
    }


def run_lines(facts: dict[str, Any]) -> Iterator[str]:
    """One run for people."""
    yield f"{facts['name']}: {facts['state']}, attempt {facts['attempts']}, {facts['folder']}"
    for key in ("reason", "error", "advice", "scheduler"):
        if facts[key] and (key == "scheduler" or facts["state"] != "finished"):
            yield f"  {key:<9}{facts[key].splitlines()[0]}"
    if facts["saved_step"] is not None:
        yield f"  saved    step {facts['saved_step']}" + ("" if facts["jobs"] else "; the same command resumes")
    if (first := facts["first_error"]) and facts["state"] != "finished":
        yield f"  first    rank {first['rank']} on {first['node'] or 'an unknown node'}: {first['what']}"
        yield from (f"           {part}: {first[part]}" for part in ("where", "fix") if first[part])
    if (hang := facts["hang"]) and facts["state"] != "finished":
        yield f"  hang     at step {hang['step']}, suspected: {_suspects(hang['suspects'])}; stacks in {hang['stacks']}"
    yield from (_job_line(job) for job in facts["jobs"])
    yield from (_attempt_line(each) for each in facts["history"] if each["job_id"] is not None)
    if facts["hours"]["total"]:
        yield f"  hours    {hours_line(facts['hours'])}"
    if facts["metrics"]:
        shown = {key: value for key, value in facts["metrics"].items() if _is_shown(key, value)}
        yield "  metrics  " + ", ".join(f"{key} {_number(value)}" for key, value in shown.items())
    yield from _rank_lines(facts["ranks"])
    if facts["report"]:
        yield f"  report   {facts['report']}"


def _job_line(job: dict[str, Any]) -> str:
    tasks = (
        f" ({', '.join(f'{count} {state.lower()}' for state, count in job['tasks'].items())})" if job["tasks"] else ""
    )
    line = f"  job      {job['job_id']} {job['name']}: {job['state'].lower()}{tasks}"
    line += f" on {job['nodes']}" if job["nodes"] else ""
    if job["means"] is None:
        return line
    line += f": {job['means']} ({job['reason']})" if job["reason"] else ""
    line += f"; starts about {job['starts']}" if job["starts"] else ""
    return f"{line}; do: {job['fix']}"


def _attempt_line(each: dict[str, Any]) -> str:
    line = f"  attempt  {each['attempt']}: job {each['job_id']}, {len(each['nodes'])} nodes, {each['seconds']:.0f} s"
    line += f", asked to save ({each['asked']})" if each["asked"] else ""
    line += f", {each['verdict']}: {each['reason']}; {each['action']}" if each["verdict"] else ""
    return line + (f", without {_list(each['exclude'])}" if each["exclude"] else "")


def hours_line(told: dict[str, Any]) -> str:
    """The split of a run's hours for people."""
    total = told["total"] or 1.0
    parts = (f"{told[kind]:.3g} {kind.replace('_', '-')} ({told[kind] / total:.0%})" for kind in KINDS)
    return f"{told['total']:.3g} {told['unit'].replace('gpu', 'GPU')}-hours: {', '.join(parts)}"


def _rank_lines(ranks: list[dict[str, Any]]) -> Iterator[str]:
    """Every rank, or the most silent ones and how many there are."""
    shown = ranks
    if len(ranks) > SHOWN_RANKS:
        shown = sorted(ranks, key=lambda rank: -rank["seconds_ago"])[:SHOWN_RANKS]
        yield f"  ranks    {len(ranks)}; those not heard of for longest:"
    for rank in shown:
        place = f" on {rank['host']}" if rank.get("host") else ""
        yield f"  rank {rank['rank']:<4}step {rank['step']}, heard {rank['seconds_ago']:.0f} s ago{place}"


def table_lines(facts: dict[str, Any]) -> Iterator[str]:
    """Every run in a line."""
    if facts["scheduler"]:
        yield f"the scheduler could not be asked: {facts['scheduler']}"
    if not facts["runs"]:
        yield f"no run under {facts['root']}"
    width = max((len(row["name"]) for row in facts["runs"]), default=0)
    for row in facts["runs"]:
        step = f"step {row['step']}" if row["step"] is not None else ""
        jobs = ", ".join(f"{job['name']} {job['means'] or job['state'].lower()}" for job in row["jobs"])
        why = row["reason"] or row["error"] if row["state"] in {"failed", "unreadable"} else None
        told = "" if row["state"] == "finished" else why or row["advice"] or jobs
        yield f"{row['name']:<{width}}  {row['state']:<9}  {step:<12}  {' '.join(told.split())}".rstrip()


def _list(names: Sequence[Any] | None) -> str:
    return ", ".join(str(name) for name in names or []) or "nobody"


def _suspects(told: Sequence[dict[str, Any]] | None) -> str:
    return _list([f"rank {one['rank']} on {one['node'] or 'an unknown node'} ({one['why']})" for one in told or []])


def _is_shown(key: str, value: Any) -> bool:
    return isinstance(value, (int, float, str)) and key not in {"attempt", "time"}


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
