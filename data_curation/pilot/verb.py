"""`megavlm curate pilot`: curate a small part, measure, and forecast the whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from megavlm.platform.cli import parser, split_overrides
from megavlm.platform.config import load_recipe
from megavlm.platform.errors import InputError
from megavlm.platform.runs import default_runs_root


def main(argv: Sequence[str]) -> int:
    """Say what a curation of the whole source would take."""
    from .show import lines
    from .whole import Pilot

    words, overrides = split_overrides(argv)
    p = parser("curate pilot", epilog="example: megavlm curate pilot my.yaml curation.source.path=laion --samples 2000")
    p.add_argument("recipe", help="a shipped recipe's name or a YAML file with a `curation:` section")
    p.add_argument("--samples", type=int, default=2000, help="about how many samples to try it on, in whole shards")
    p.add_argument("--out", help="run folder (default: the recipe's name with -pilot under $MEGAVLM_RUNS or ./runs)")
    p.add_argument("--dry-run", action="store_true", help="say what would be tried, and try nothing")
    args = p.parse_args(words)
    if args.samples < 1:
        raise InputError(f"{args.samples} samples are nothing to try", where="--samples", fix="--samples 2000")
    recipe = load_recipe(args.recipe, overrides)
    root = Path(args.out or default_runs_root() / f"{recipe.name}-pilot")
    pilot = Pilot(recipe, root, ["megavlm", "curate", "pilot", *argv])
    told = pilot.plan(args.samples) if args.dry_run else pilot.run(args.samples)
    print(json.dumps(told, indent=2) if args.json else "\n".join(lines(told)))
    return 0
