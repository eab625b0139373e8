"""What torchrun runs for `megavlm eval`: loads a stage in its own layout, judges one suite, writes the answers."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from megavlm.platform.config import load_recipe
from megavlm.platform.processes import die_with
from megavlm.platform.runs import RunFolder

from ..backend import shutdown
from ..config import Stages
from ..inference.load import load_stage
from .stage import BLIND, PLAIN, evaluate_stage


def main(argv: Sequence[str]) -> None:
    """One rank's part."""
    die_with(os.getppid())
    p = argparse.ArgumentParser()
    p.add_argument("run")
    for name in ("--stage", "--suite", "--set"):
        p.add_argument(name, required=True)
    p.add_argument("--checkpoint", type=Path)
    p.add_argument("--ways", nargs="+", choices=(PLAIN, BLIND), required=True)
    args = p.parse_args(argv)
    run = RunFolder.open(args.run)
    recipe = load_recipe(str(run.path("config.yaml")))
    stages: Stages = recipe.section("stages")
    model = load_stage(run, recipe, args.stage, stages[args.stage].parallel, args.checkpoint)
    for way in args.ways:
        suites = {args.suite: args.set}
        evaluate_stage(model, run, recipe, args.stage, suites, way, checkpoint=args.checkpoint)
    shutdown()


if __name__ == "__main__":  # checkpoint loading may start processes that import the main module
    main(sys.argv[1:])
