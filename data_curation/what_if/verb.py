"""`megavlm curate select RUN --what-if STAGE.OPTION=VALUE ...`: what a run's funnel would be under other thresholds."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from megavlm.platform.cli import parser
from megavlm.platform.progress import Progress, progress
from megavlm.platform.runs import find_run

from ..run import CurationRun
from .decide import Line, WhatIf, present
from .options import Variant, at_present, command, parse_asked, variants
from .plan import Plan
from .tell import difference, held_fixed, sweep

EXAMPLE = "example: megavlm curate select runs/photos --what-if select.nearest=50,100,200 deduplicate.hash_radius=40"


def main(argv: Sequence[str]) -> int:
    """Check everything that is asked, then count. Nothing is written into the run's folder."""
    p = parser("curate select", epilog=EXAMPLE)
    p.add_argument("run")
    p.add_argument(
        "--what-if",
        nargs="+",
        action="extend",
        required=True,
        metavar="KEY=VALUE",
        help="an option of a stage (select.nearest=100); of several values (50,100,200) each gives a column",
    )
    p.add_argument(
        "--dry-run", action="store_true", help="tell what would be decided anew, and what it took in the run"
    )
    args = p.parse_args(argv)
    run = CurationRun.open(find_run(args.run).root)
    asked = parse_asked(run, args.what_if)
    tried, now = variants(run, asked), present(run)
    plans = [Plan.of(run, variant.config) for variant in tried]
    if args.dry_run:
        return _tell_plans(run, now, tried, plans, args.json)
    started = time.monotonic()
    funnels = count(run, now, plans)
    if args.json:
        head = {"run": str(run.folder.root), "seconds": round(time.monotonic() - started, 2)}
        told = [
            {"options": dict(variant.options), "funnel": [line.as_json() for line in lines]}
            for variant, lines in zip(tried, funnels, strict=True)
        ]
        told_now = [line.as_json() for line in now]
        print(json.dumps(head | {"notes": held_fixed(funnels), "now": told_now, "what_if": told}, indent=2))
    else:
        _tell(run, now, at_present(run, asked), tried, funnels)
    return 0


def count(run: CurationRun, now: list[Line], plans: Sequence[Plan]) -> list[list[Line]]:
    """The funnel of each plan. What stages write on the way lies in a temporary folder ($TMPDIR), which goes."""
    bar: Progress[object] = progress(label="what if", unit="task")
    with tempfile.TemporaryDirectory(prefix="megavlm-what-if-") as scratch, bar:
        what_if, funnels = WhatIf(run, now, Path(scratch), bar), []
        for place, plan in enumerate(plans):
            funnels.append(what_if.funnel(plan))
            what_if.forget(plans[place + 1 :])
        return funnels


def _tell(
    run: CurationRun, now: list[Line], present: Variant, tried: Sequence[Variant], funnels: list[list[Line]]
) -> None:
    if len(tried) == 1:
        print("\n".join([f"what if {tried[0]}, now {present}", *difference(now, funnels[0])]))
        print(f"To make it so: {command(run, tried[0].options)}")
    else:
        print("\n".join(sweep(present, now, tried, funnels)))
    print("\n".join(held_fixed(funnels)))


def _tell_plans(
    run: CurationRun, now: Sequence[Line], tried: Sequence[Variant], plans: Sequence[Plan], as_json: bool
) -> int:
    """Stages by how they would be decided, and the seconds that the run's own tasks took."""
    took = {line.stage: line.seconds for line in now}
    if as_json:
        found = [
            {"options": dict(variant.options), "decided": dict(plan.how)}
            for variant, plan in zip(tried, plans, strict=True)
        ]
        print(json.dumps({"run": str(run.folder.root), "seconds_in_the_run": took, "what_if": found}, indent=2))
        return 0
    for variant, plan in zip(tried, plans, strict=True):
        anew = ", ".join(f"{stage} ({took[stage]:.1f} s in the run)" for stage in plan.anew)
        print(f"{variant}: decided anew: {anew or 'nothing'}")
    return 0
