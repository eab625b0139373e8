"""`megavlm curate run | worker | status`."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

from megavlm.platform.cli import parser, split_overrides
from megavlm.platform.config import load_recipe
from megavlm.platform.errors import InputError
from megavlm.platform.runs import RunFolder, default_runs_root, find_run

from .funnel import funnel
from .run import CurationRun

# What the same run folder may be curated with again: the ledger knows fingerprints, so only what changed is done anew.
MAY_CHANGE = ("curation.stages.*", "curation.executor.*", "seed")


def run_main(argv: Sequence[str]) -> int:
    """Curate, or go on with a curation; prints the funnel."""
    from .pipeline import curate

    words, overrides = split_overrides(argv)
    example = "example: megavlm curate run curate-demo curation.source.path=photos --out runs/photos"
    p = parser("curate run", epilog=example)
    p.add_argument("recipe", help="a shipped recipe's name or a YAML file with a `curation:` section")
    p.add_argument("--out", help="run folder (default: the recipe's name under $MEGAVLM_RUNS or ./runs)")
    args = p.parse_args(words)
    recipe = load_recipe(args.recipe, overrides)
    recipe.section("curation")
    out = args.out or default_runs_root() / recipe.name
    command = ["megavlm", "curate", "run", *argv]
    folder = RunFolder.create(out, recipe.tree, recipe.origins, command, may_change=MAY_CHANGE)
    started = time.monotonic()
    run = CurationRun.open(folder.root)
    curate(run)
    _tell(run, args.json, seconds=round(time.monotonic() - started, 2))
    return 0


def worker_main(argv: Sequence[str]) -> int:
    """Do tasks of one stage; what executors start."""
    from .work import work

    p = parser("curate worker", epilog="example: megavlm curate worker runs/photos --stage embed --task 0-7")
    p.add_argument("run")
    p.add_argument("--stage", required=True)
    p.add_argument("--task", required=True, help="numbers and ranges: 3 or 0-7 or 0-3,9")
    args = p.parse_args(argv)
    work(CurationRun.open(args.run), args.stage, parse_tasks(args.task))
    return 0


def status_main(argv: Sequence[str]) -> int:
    """A run's stages, counts and reasons, from files only."""
    p = parser("curate status")
    p.add_argument("run")
    args = p.parse_args(argv)
    _tell(CurationRun.open(find_run(args.run).root), args.json)
    return 0


def parse_tasks(text: str) -> list[int]:
    """ "0-2,5" -> [0, 1, 2, 5]; raises InputError."""
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        raise InputError(f"'{text}' names no tasks", where="--task", fix="write 3 or 0-7 or 0-3,9")
    bounds = [part.split("-") for part in text.split(",")]
    return [task for part in bounds for task in range(int(part[0]), int(part[-1]) + 1)]


def _tell(run: CurationRun, as_json: bool, **extra: Any) -> None:
    lines = funnel(run)
    if as_json:
        state = {"run": str(run.folder.root), "finished": run.folder.finished, "shards": len(run.plan.names)}
        print(json.dumps(state | extra | {"funnel": lines}, indent=2))
        return
    print(f"{'stage':<14}{'tasks':>6}{'in':>10}{'kept':>10}{'dropped':>10}  reasons")
    for line in lines:
        reasons = ", ".join(f"{reason} {count}" for reason, count in line["dropped"].items())
        counts = f"{line['done']:>6}{line['in']:>10}{line['kept']:>10}{line['in'] - line['kept']:>10}"
        print(f"{line['stage']:<14}{counts}  {reasons}")
    print("finished" if run.folder.finished else "not finished; `megavlm curate run` goes on", file=sys.stderr)
