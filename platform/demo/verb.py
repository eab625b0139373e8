"""`megavlm demo`: photographs in, a curated set, a trained and measured model and a report out."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cli import parser
from .places import VARIABLE, demo_data, demo_root
from .steps import make_data, say, train, train_control

EPILOG = """\
example: megavlm demo --out runs/demo
The same command again goes on where a stopped one was; an empty --out starts anew.
No weight is pretrained: encoder and language model start from random numbers and learn in this run.
"""


def main(argv: Sequence[str]) -> int:
    """Run what is not done yet and tell the figures. The exit code is the text gate's: 0, 3 or 5."""
    p = parser("demo", epilog=EPILOG)
    p.add_argument("--out", type=Path, help="folder of the demo (default: runs/demo)")
    p.add_argument("--only", choices=["data", "train"], help="stop when the data is there, or the model is trained")
    args = p.parse_args(argv)
    out, data = _places(args.out)
    started = time.monotonic()
    make_data(data)
    if args.only == "data":
        print(json.dumps({"data": str(data)}) if args.json else f"the demo's data is at {data}")
        return 0
    gate = train(out, data)
    if args.only == "train":
        print(json.dumps({"run": str(out / "train"), "gate": gate}) if args.json else f"trained: {out / 'train'}")
        return gate
    train_control(out, data)
    told = tell(out, data, started)
    print(json.dumps(told, indent=2) if args.json else readable(told))
    return gate


def _places(out: Path | None) -> tuple[Path, Path]:
    """(the demo's folder, its data's): --out moves both, unless the environment says where the data is."""
    if out is None:
        return demo_root(), demo_data()
    return out, Path(os.environ.get(VARIABLE) or out / "data")


def tell(out: Path, data: Path, started: float) -> dict[str, Any]:
    """Figures and report of a finished run."""
    from .figures import figures
    from .report import write_report

    say("writing the report")
    told = figures(out, data)
    told["report"] = str(write_report(out, data, told))
    return told | {"seconds": round(time.monotonic() - started, 1)}


def readable(told: dict[str, Any]) -> str:
    """The figures for people."""
    lines = []
    for part in ("curation", "training", "evaluation"):
        lines += [part] + [f"  {name:<28}{_plain(value)}" for name, value in told[part].items()]
    return "\n".join([*lines, f"report: {told['report']}", f"took {told['seconds']:.0f} s"])


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(each)}" for key, each in value.items())
    return str(value)
