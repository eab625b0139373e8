"""`megavlm convert import`, `export` and `verify`. They load torch only once what they were given is there."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megavlm.platform.cli import parser, split_overrides
from megavlm.platform.config import load_recipe
from megavlm.platform.errors import ConfigError
from megavlm.platform.runs import RunFolder

from ..checkpoints.listing import Source as Trained
from ..checkpoints.listing import resolve
from ..config import Stages
from ..data.build import StageData
from ..parts import AXES, OWNERS
from . import FORMATS
from .backbone import Blend, find_trained, make_blend
from .formats import Format, for_export, format_of
from .published import Published
from .words import readable_export, readable_import, readable_verify, size

SHOWN = 10  # differences

IMPORT_EPILOG = """\
examples:
  megavlm convert import models/Qwen2-7B-Instruct --recipe nvlm-d-mini --out runs/start --dry-run
  megavlm convert import models/Qwen2-72B-Instruct models/InternViT-6B-448px-V1-5 --recipe my.yaml --out runs/start
then, in the recipe, stages.STAGE.start: runs/start
"""
EXPORT_EPILOG = """\
examples:
  megavlm convert export runs/nvlm-d-mini --format qwen2 --out exported
  megavlm convert export runs/nvlm-d-mini/checkpoints/sft/step-000110 --format qwen2 --dtype bfloat16 --out exported
  megavlm convert export runs/nvlm-d-72b --format nvlm_d --interpolate 0.7 --backbone Qwen2-72B-Instruct --out exported
"""
VERIFY_EPILOG = """\
examples:
  megavlm convert verify runs/start models/Qwen2-72B-Instruct
"""


def import_main(argv: Sequence[str]) -> int:
    """Published weights into a new run, whose checkpoint a stage starts from."""
    words, overrides = split_overrides(argv)
    p = parser("convert import", epilog=IMPORT_EPILOG)
    p.add_argument("paths", metavar="PATH", nargs="+", help="folder of published weights, or one file of them")
    p.add_argument("--recipe", required=True, help="the recipe whose model they are for")
    p.add_argument("--stage", help="its stage (default: the first); stages may differ in their model")
    _what(p)
    p.add_argument("--out", type=Path, required=True, help="run folder to make; not the one that will be trained in")
    p.add_argument("--dry-run", action="store_true", help="compare every name and shape, and write nothing")
    args = p.parse_args(words)
    recipe = load_recipe(args.recipe, overrides)
    stages: Stages = recipe.section("stages")
    stage = args.stage or next(iter(stages.root))
    spec = StageData.of(recipe, stage)
    if args.out.exists():
        raise ConfigError(f"{args.out} is there already", where="--out", fix="give a folder that is not")
    sources = [(Published(Path(path)), args.format, args.part) for path in args.paths]

    from ..backend import shutdown
    from .importing import write_import

    try:
        plan = _plan(spec, sources)
        told = plan.record() | {"run": str(args.out), "stage": stage, "checkpoint": None}
        if not args.dry_run:
            run = RunFolder.create(args.out, recipe.tree, recipe.origins, ["megavlm", "convert", "import", *argv])
            told["checkpoint"] = str(write_import(plan, run, stage))
    finally:
        shutdown()
    print(json.dumps(told, indent=2) if args.json else readable_import(told))
    return 0


def export_main(argv: Sequence[str]) -> int:
    """A checkpoint's weights as safetensors, with what the format's classes need to load them."""
    p = parser("convert export", epilog=EXPORT_EPILOG)
    p.add_argument("source", metavar="RUN|CKPT", help="a run (folder or name), or a checkpoint's folder in one")
    p.add_argument("--stage", help="stage of the run (default: the last trained one)")
    p.add_argument("--format", required=True, help=f"one of {', '.join(FORMATS)}")
    p.add_argument("--out", type=Path, required=True, help="folder to make")
    p.add_argument("--max-shard", type=size, default="5GB", help="largest file, which is held in memory (default 5GB)")
    p.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: as it is stored")
    p.add_argument("--with-objectives", action="store_true", help="an aligning layer and its teacher too, for training")
    mixed = "write WEIGHT * these weights + (1 - WEIGHT) * the backbone's"
    p.add_argument("--interpolate", type=float, metavar="WEIGHT", help=mixed)
    p.add_argument("--backbone", metavar="RUN:STAGE|FOLDER", help="what the training started from")
    p.add_argument("--interpolate-parts", action="append", choices=AXES, metavar="PART", help="default: decoder")
    p.add_argument("--dry-run", action="store_true", help="say what would be written")
    args = p.parse_args(argv)
    trained = find_trained(args.source, args.stage)
    blend = _blend(args, trained)
    fmt: Format = FORMATS.load(args.format)()
    spec = for_export(StageData.of(trained.recipe, trained.stage), fmt, args.with_objectives)
    fmt.fits(spec.model)

    import torch

    from ..backend import shutdown
    from .exporting import plan_export, write_export

    try:
        dtype = getattr(torch, args.dtype) if args.dtype else None
        plan = plan_export(fmt, spec, trained.checkpoint, args.max_shard, dtype, blend)
        told = plan.record() | {"checkpoint": str(trained.checkpoint), "out": str(args.out)}
        if not args.dry_run:
            write_export(plan, args.out)
    finally:
        shutdown()
    print(json.dumps(told, indent=2) if args.json else readable_export(told))
    return 0


def _blend(args: argparse.Namespace, trained: Trained) -> Blend | None:
    if (args.interpolate is None) != (args.backbone is None):
        given, other = ("--backbone", "--interpolate") if args.interpolate is None else ("--interpolate", "--backbone")
        raise ConfigError(f"{given} without {other}", where=given, fix="--interpolate 0.7 --backbone RUN:STAGE")
    if args.backbone is None:
        return None
    return make_blend(args.interpolate, trained, args.backbone, args.interpolate_parts, "--interpolate")


def verify_main(argv: Sequence[str]) -> int:
    """Compare a checkpoint with published weights; 3 when they differ."""
    p = parser("convert verify", epilog=VERIFY_EPILOG)
    p.add_argument("source", metavar="RUN|CKPT", help="a run (folder or name), or a checkpoint's folder in one")
    p.add_argument("paths", metavar="PATH", nargs="+", help="folder of published weights, or one file of them")
    p.add_argument("--stage", help="stage of the run (default: the last trained one)")
    _what(p)
    limit = "compare a language model's logits too, where its weights are no larger (default 2GB)"
    p.add_argument("--logits-up-to", type=size, default="2GB", metavar="SIZE", help=limit)
    args = p.parse_args(argv)
    trained = resolve(args.source, args.stage)
    sources = [(Published(Path(path)), args.format, args.part) for path in args.paths]

    from ..backend import shutdown

    try:
        told = _verify(trained, sources, args.logits_up_to)
    finally:
        shutdown()
    print(json.dumps(told, indent=2) if args.json else readable_verify(told))
    return 0 if told["equal"] else 3


def _what(p: argparse.ArgumentParser) -> None:
    p.add_argument("--format", help=f"one of {', '.join(FORMATS)} (default: by the architecture in config.json)")
    parts = ", ".join(OWNERS)
    p.add_argument("--part", action="append", choices=OWNERS, metavar="PART", help=f"only this of {parts}; repeatable")


def _plan(spec: StageData, sources: Sequence[tuple[Published, str | None, list[str] | None]]) -> Any:
    from .importing import Source, plan_import

    return plan_import(spec.model, [Source(pub, *_asked(format_of(pub, name), parts)) for pub, name, parts in sources])


def _asked(fmt: Format, parts: list[str] | None) -> tuple[Format, list[str]]:
    """The format, and the axes of it that were asked for; raises ConfigError where it has none of them."""
    axes = [axis for axis in fmt.maps if not parts or axis in parts]
    if not axes:
        held = ", ".join(fmt.maps)
        raise ConfigError(f"format {fmt.name} holds {held}, and not {', '.join(parts or [])}", where="--part")
    return fmt, axes


def _verify(
    trained: Trained, sources: Sequence[tuple[Published, str | None, list[str] | None]], largest: int
) -> dict[str, Any]:
    from ..backend import build_context
    from ..config import Parallel
    from .verifying import differences, language_model, logit_difference

    plan = _plan(StageData.of(trained.recipe, trained.stage), sources)
    found = list(itertools.islice(differences(plan, trained.checkpoint), SHOWN))
    path, logits = language_model(plan), None
    if path is not None and plan.bytes <= largest and not found:
        logits = logit_difference(plan, path, trained.checkpoint, build_context(Parallel(), "fp32"))
    equal = not found and (logits is None or logits["equal"])
    told = {"checkpoint": str(trained.checkpoint), "parts": plan.axes, "equal": equal, "logits": logits}
    return told | {"differences": [each._asdict() for each in found]}
