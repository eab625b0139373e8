"""`megavlm train`: checks the plan, makes what is missing, starts torchrun, and says how it went. Loads no torch."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from megavlm.platform.cli import parser, split_overrides
from megavlm.platform.config import Recipe, load_recipe
from megavlm.platform.errors import ConfigError, SavedResumable
from megavlm.platform.nodes import COUNT, Place, place
from megavlm.platform.runs import Attempt, RunFolder, SaveRequest, default_runs_root

from ..config import Stages
from ..data.build import StageData
from ..tracing.contracts import RankTrace
from ..tracing.told import readable as tabled
from ..tracing.told import record
from .back import GoBack, plan_back
from .checks import check_trackers, check_writable
from .launch import follow, lead, shared_attempt
from .lock import exclusive
from .outcome import Outcome, outcome
from .packs import check_manifests, ensure_packs, make_demo_data
from .plan import Plan, make_plan
from .pulse import Pulse
from .stages import chosen, unfinished
from .watchers.verdict import refuse_stopped

# What a resume may set anew.
MAY_CHANGE = (
    "stages.*.parallel",
    "stages.*.parallel.*",
    "stages.*.checkpoint.*",
    "stages.*.on_spike",
    "stages.*.watch",
    "stages.*.watch.*",
    "stages.*.deterministic",
    "data.sets.*",
    "data.decoder.*",
    "run.*",
)

EPILOG = """\
examples:
  megavlm train nvlm-d-mini                               every unfinished stage; run it again to resume
  megavlm train nvlm-d-mini stages.sft.steps=50 --dry-run --json
  megavlm train nvlm-d-72b --dry-run --trace --nodes 16 --nproc 8   every rank that differs, walked on this machine
  megavlm train nvlm-d-mini --stage sft --from-step 60 --skip 70:72   after a loss spike: back, and without two batches
"""


def main(argv: Sequence[str]) -> int:
    """Train a recipe's unfinished stages. Exit codes: 0 done, 3 a gate said no, 4 saved and resumable, 5 undecided."""
    words, overrides = split_overrides(argv)
    args, here = _arguments(words), place()
    recipe = load_recipe(args.recipe, overrides)
    plan = make_plan(recipe, args.stage, args.nproc, args.nodes or here.nodes, args.nodes is not None, args.trace)
    out = args.out or default_runs_root() / recipe.name
    if args.dry_run or here.leads:
        check_writable(out)
        check_manifests(recipe, plan, out)
        check_trackers(recipe)
    back = _back(recipe, args, out)
    if args.dry_run:
        traces = traced(recipe, plan) if args.trace else {}
        facts = plan.record() | {"run": str(out)} | ({"trace": record(traces)} if traces else {})
        parts = [readable(plan, out, back), *([tabled(traces)] if traces else [])]
        print(json.dumps(facts, indent=2) if args.json else "\n".join(parts))
        return 0
    if plan.nodes != here.nodes:
        fix = f"start it on every machine with {COUNT}={plan.nodes}, or let `megavlm submit` do so"
        raise ConfigError(f"--nodes {plan.nodes} plans, and starts nothing elsewhere", where="--nodes", fix=fix)
    if not here.leads:
        return follow(RunFolder(out), plan.nproc, here)
    print(readable(plan, out, back), file=sys.stderr)
    make_demo_data(recipe)
    run = RunFolder.create(out, recipe.tree, recipe.origins, ["megavlm", "train", *argv], may_change=MAY_CHANGE)
    told = train(run, recipe, plan, args.stage, here, back)
    print(json.dumps(told.record(), indent=2) if args.json else told.readable())
    return told.exit_code


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    p = parser("train", epilog=EPILOG)
    p.add_argument("recipe", help="a shipped recipe's name or a YAML file")
    p.add_argument("--stage", help="this stage only")
    p.add_argument("--out", type=Path, help="run folder (default: runs/RECIPE)")
    p.add_argument("--nproc", type=int, help="processes on this machine (default: what the layout needs, or the GPUs)")
    p.add_argument("--nodes", type=int, help="with --dry-run: plan for so many machines with --nproc processes each")
    p.add_argument("--from-step", type=int, metavar="A", help="go back to the newest checkpoint at or before step A")
    p.add_argument("--skip", metavar="A:B", help="with it: leave the manifest's global batches A..B-1 (from 0) out")
    p.add_argument("--dry-run", action="store_true", help="check everything and print the plan; loads no torch")
    p.add_argument(
        "--trace",
        action="store_true",
        help="with it: walk every rank that differs through a step of the real code, without data, weights or GPUs: "
        "shape errors appear here, and what each rank holds; loads torch, minutes for 72B",
    )
    args = p.parse_args(words)
    if args.trace and not args.dry_run:
        raise ConfigError("--trace walks through a job and trains nothing", where="--trace", fix="add --dry-run")
    return args


def traced(recipe: Recipe, plan: Plan) -> dict[str, tuple[RankTrace, ...]]:
    """The traces of the plan's stages that train; raises ConfigError for what fails on a rank. Loads torch."""
    from ..tracing.job import trace_stages

    trained = recipe.section("stages").root
    return trace_stages(recipe, [stage.name for stage in plan.stages if stage.name in trained], plan.world)


def _back(recipe: Recipe, args: argparse.Namespace, out: Path) -> GoBack | None:
    if args.from_step is None and args.skip is None:
        return None
    return plan_back(RunFolder.open(out), recipe.section("stages"), args.stage, args.from_step, args.skip)


def train(
    run: RunFolder, recipe: Recipe, plan: Plan, only: str | None, here: Place, back: GoBack | None = None
) -> Outcome:
    """Bring the run as far as it goes: pack what is not packed, then torchrun for all unfinished stages.

    With `back`, go back first, when it is sure that there are batches enough.
    """
    stages: Stages = recipe.section("stages")
    if not here.alone:
        shared_attempt(run)
    locks = [run.path("stages", name, "lock") for name in chosen(stages, only)]
    with exclusive(locks), run.new_attempt() as attempt, SaveRequest(attempt) as request:
        names, saved = unfinished(run, stages, only), None
        alive = _packing(attempt, request)
        if back:
            ensure_packs(run, StageData.of(recipe, back.stage), alive, back.skips(run, attempt.number))
            back.do(run, attempt)
        trained = [name for name in names if name in stages.root]
        for name in trained:
            refuse_stopped(run, name, stages[name])
        for name in trained:
            ensure_packs(run, StageData.of(recipe, name), alive)
        if names:
            print(f"log: {attempt.root}", file=sys.stderr)
            saved = lead(run, attempt, stages, names, plan.nproc, here, request)
        told = outcome(run, stages, only, saved)
        attempt.exit_code = told.exit_code
    return told


def _packing(attempt: Attempt, request: SaveRequest) -> Callable[[], None]:
    """Called while a stage is packed: gives the signs of life that no rank gives yet, and ends when asked to."""
    pulse = Pulse(attempt, rank=0, ranks=1)

    def alive() -> None:
        pulse("pack")
        if request.requested:
            raise SavedResumable("stopped while packing, before any training", fix="the same command packs anew")

    return alive


def readable(plan: Plan, out: Path, back: GoBack | None = None) -> str:
    """The plan for people."""
    machines = f" ({plan.nodes} nodes x {plan.nproc})" if plan.nodes > 1 else ""
    head = f"plan: {plan.recipe} on {plan.world} process(es){machines}, run folder {out}"
    columns = f"  {'stage':<14}{'trained/all parameters':>28}{'steps':>9}{'tokens':>15}  layout"
    rows = [head, columns]
    for s in plan.stages:
        parameters = f"{s.trained_parameters:,}/{s.parameters:,}"
        batches = f"{s.micro_batches} micro-batches" if s.micro_batches else f"batches of {s.batch}"
        work = batches if s.steps else s.batch
        layout = f"tp {s.tp} pp {s.pp} dp {s.dp}, {work}, {s.precision}"
        tokens = "" if s.tokens is None else f"{s.tokens:,}"
        rows.append(f"  {s.name:<14}{parameters:>28}{s.steps:>9,}{tokens:>15}  {layout}")
    notes = [*plan.notes, *([back.readable()] if back else [])]
    return "\n".join([*rows, *(f"  note: {note}" for note in notes)])
