"""What torchrun runs for `megavlm eval`: loads a stage in its own layout, judges its suites, writes the answers."""

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
from .ensure import data_override
from .stage import BLIND, PLAIN, How, evaluate_stage


def main(argv: Sequence[str]) -> None:
    """One rank's part."""
    die_with(os.getppid())
    p = argparse.ArgumentParser()
    p.add_argument("run")
    p.add_argument("--stage", required=True)
    p.add_argument("--suites", nargs="+", required=True, metavar="SUITE=SET")
    p.add_argument("--checkpoint", type=Path)
    p.add_argument("--ways", nargs="+", choices=(PLAIN, BLIND), required=True)
    p.add_argument("--protocol", required=True)
    p.add_argument("--limit", type=int)
    p.add_argument("--data", type=Path)
    args = p.parse_args(argv)
    run = RunFolder.open(args.run)
    recipe = load_recipe(str(run.path("config.yaml")), data_override(args.data))
    stages: Stages = recipe.section("stages")
    model = load_stage(run, recipe, args.stage, stages[args.stage].parallel, args.checkpoint)
    suites = dict(word.split("=", 1) for word in args.suites)
    for way in args.ways:
        how = How(args.protocol, args.limit)
        evaluate_stage(model, run, recipe, args.stage, suites, way, checkpoint=args.checkpoint, how=how)
    shutdown()


if __name__ == "__main__":  # checkpoint loading may start processes that import the main module
    main(sys.argv[1:])
