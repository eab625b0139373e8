"""`megavlm plan`: memory, time and layouts of a recipe's stages on GPUs that need not be there.

By formulas, which load no torch; --trace walks through the real training step beside them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megavlm.platform.cli import parser, split_overrides
from megavlm.platform.config import Recipe, load_recipe
from megavlm.platform.errors import CheckFailed, ConfigError

from ..config import Stages
from ..data.manifest import Manifest
from ..training.stages import chosen
from .contracts import Gpu
from .estimate import Task, layout_of, task_of
from .hardware import find_gpu, gpus
from .refuse import Refusal, check_gpus
from .saves import GIGA, MTBF_HOURS, STORAGE_RATE, saves
from .search import Found, judged, layouts
from .told import StagePlan

if TYPE_CHECKING:
    from ..tracing.contracts import RankTrace

EPILOG = """\
examples:
  megavlm plan nvlm-d-72b --gpus 128 --gpu h100           each stage as the recipe splits it, and what would be faster
  megavlm plan eve-7b stages.sft.parallel.tp=2 --gpus 16 --gpu a100-40 --stage sft --top 0 --json
"""


def main(argv: Sequence[str]) -> int:
    """Plan a recipe's stages. Exit codes: 0 each can run as it stands there, 3 one cannot."""
    words, overrides = split_overrides(argv)
    args = _arguments(words)
    recipe, gpu = load_recipe(args.recipe, overrides), find_gpu(args.gpu, args.gpus_per_node)
    check_gpus(gpu, args.gpus)
    names = trained_stages(recipe, args.stage)
    sample = (args.sample_tokens, args.sample_tiles, _manifest(args.packs, names))
    plans = [plan_stage(task_of(recipe, name, *sample), gpu, args) for name in names]
    if args.html:
        from .page import write_page  # with all that draws

        write_page(args.html, recipe.name, plans)
    of = (recipe, gpu, args.gpus, plans)
    print(json.dumps(record(*of), indent=2) if args.json else readable(*of))
    return CheckFailed.exit_code if any(plan.refused for plan in plans) else 0


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    p = parser("plan", epilog=EPILOG)
    p.add_argument("recipe", help="a shipped recipe's name or a YAML file")
    p.add_argument("--gpus", type=int, required=True, metavar="N", help="in all; over 8 they come in machines of 8")
    p.add_argument("--gpus-per-node", type=int, default=8, metavar="N", help="where a machine has another number")
    p.add_argument("--gpu", required=True, metavar="KIND", help=", ".join(gpus()))
    p.add_argument("--stage", help="this stage only")
    p.add_argument("--sample-tokens", type=int, metavar="N", help="of each sample, visual ones included")
    p.add_argument("--sample-tiles", type=int, metavar="N", help="of each sample's image, thumbnail included")
    p.add_argument("--packs", type=Path, metavar="FOLDER", help="a stage's pack manifest, in place of assumed samples")
    p.add_argument("--top", type=int, default=5, metavar="N", help="the fastest layouts to tell; 0: search for none")
    p.add_argument("--trace", action="store_true", help="also walk the real step on fake tensors; loads torch")
    p.add_argument("--html", type=Path, metavar="FILE", help="write the pictures there")
    p.add_argument("--mtbf-hours", type=float, default=MTBF_HOURS, metavar="H", help="between failures of one GPU")
    p.add_argument("--storage", type=float, default=STORAGE_RATE / GIGA, metavar="GB/s", help="each machine writes")
    return p.parse_args(words)


def _manifest(folder: Path | None, stages: Sequence[str]) -> Manifest | None:
    """Raises ConfigError for a manifest of several stages, and InputError where there is none."""
    if folder is None:
        return None
    if len(stages) > 1:
        what = f"a manifest is of one stage, and {len(stages)} are planned: {', '.join(stages)}"
        raise ConfigError(what, where="--packs", fix="name it with --stage")
    return Manifest(folder)


def trained_stages(recipe: Recipe, only: str | None = None) -> list[str]:
    """The stages that train, of those a run is about; raises ConfigError for one that there is not, and for a gate."""
    stages: Stages = recipe.section("stages")
    return [name for name in chosen(stages, only) if only or name in stages.root]


def plan_stage(task: Task, gpu: Gpu, args: argparse.Namespace) -> StagePlan:
    """All there is to say of a stage."""
    own = judged(task, gpu, args.gpus, task.layout)
    refused = own if isinstance(own, Refusal) else None
    made = own.estimate if isinstance(own, Refusal) else own
    found = layouts(task, gpu, args.gpus, args.top) if args.top else Found([])
    best = found.rows[0] if found.rows else made
    if refused and refused.kind == "memory" and found.rows:
        refused = refused.mended_by(layout_of(found.rows[0]).overrides(task.layout, task.spec.name))
    apart = task.spec.stage.checkpoint.asynchronous is not False
    cost = saves(best, apart, args.mtbf_hours, args.storage * GIGA) if best else None
    traces = _traced(task, args.gpus) if args.trace and not refused else ()
    return StagePlan(task.spec.name, task.layout, task.load.origin, made, refused, found, args.top, cost, traces)


def _traced(task: Task, world: int) -> tuple[RankTrace, ...]:
    from ..tracing.job import trace_job

    return trace_job(task.spec, world, task.load)


def record(recipe: Recipe, gpu: Gpu, world: int, plans: Sequence[StagePlan]) -> dict[str, Any]:
    """Plain data under stable keys."""
    stages = {plan.stage: plan.record() for plan in plans}
    return {"recipe": recipe.name, "gpu": gpu.name, "gpus": world, "stages": stages}


def readable(recipe: Recipe, gpu: Gpu, world: int, plans: Sequence[StagePlan]) -> str:
    """For people."""
    machines = f" in {world // gpu.per_node} machines" if world > gpu.per_node else ""
    head = f"plan: {recipe.name} on {world} x {gpu.name}{machines}, by formulas; docs/plan.md says how exact they are"
    return "\n".join([head, *(line for plan in plans for line in plan.lines())])
