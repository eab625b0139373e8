"""`megavlm convert interpolate`: a run whose weights lie between a trained model and its backbone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from megavlm.platform.cli import parser
from megavlm.platform.errors import ConfigError
from megavlm.platform.runs import RunFolder

from ..checkpoints.listing import lacking_of
from ..data.build import StageData
from ..parts import AXES
from .backbone import find_trained, make_blend
from .words import readable_interpolation

EPILOG = """\
examples:
  megavlm convert interpolate runs/nvlm-d-mini:sft runs/nvlm-d-mini:language --weight 0.7 --out runs/nvlm-d-mini-0.7
  megavlm convert interpolate runs/nvlm-d-72b:sft models/Qwen2-72B-Instruct --weight 0.7 --out runs/nvlm-d-72b-0.7
then: megavlm eval runs/nvlm-d-mini-0.7 --stage sft --suite text, or in a recipe stages.STAGE.start: RUN
"""


def main(argv: Sequence[str]) -> int:
    """weight * trained + (1 - weight) * backbone, as a checkpoint that is judged, exported, or started from."""
    p = parser("convert interpolate", epilog=EPILOG)
    p.add_argument("trained", metavar="RUN[:STAGE]|CKPT", help="what was trained")
    p.add_argument("backbone", metavar="RUN[:STAGE]|FOLDER", help="what the training started from")
    p.add_argument(
        "--weight", type=float, required=True, help="of the trained weights: 0 is the backbone, 1 the trained"
    )
    p.add_argument("--parts", action="append", choices=AXES, help="what is mixed (default: decoder); repeatable")
    p.add_argument("--out", type=Path, required=True, help="run folder to make")
    p.add_argument("--dry-run", action="store_true", help="compare every name and shape, and write nothing")
    args = p.parse_args(argv)
    trained = find_trained(args.trained)
    blend = make_blend(args.weight, trained, args.backbone, args.parts, "--weight")
    if args.out.exists():
        raise ConfigError(f"{args.out} is there already", where="--out", fix="give a folder that is not")
    model = StageData.of(trained.recipe, trained.stage).model

    from ..backend import shutdown
    from .importing import size_of, write_start
    from .interpolating import Interpolated, held_by, tensors
    from .ours import slots
    from .stored import Stored

    try:
        own = held_by(trained, slots(model))
        stored = Stored(trained.checkpoint)
        mixed = Interpolated(stored, blend, model, own)
        late = tensors(mixed, stored, own)
        parts = list(dict.fromkeys(slot.axis for slot in own))
        told = blend.record() | {"mixed": len(mixed.mixed), "kept": len(own) - len(mixed.mixed), "bytes": size_of(late)}
        told |= {"run": str(args.out), "stage": trained.stage, "checkpoint": None}
        if not args.dry_run:
            words = ["megavlm", "convert", "interpolate", *argv]
            run = RunFolder.create(args.out, trained.recipe.tree, trained.recipe.origins, words)
            marker = {"parts": parts, "lacking": lacking_of(trained.checkpoint), "interpolation": blend.record()}
            told["checkpoint"] = str(write_start(run, trained.stage, late, marker))
    finally:
        shutdown()
    print(json.dumps(told, indent=2) if args.json else readable_interpolation(told))
    return 0
