"""`megavlm preflight`: this machine's figures, or every node's against the fleet's median."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megavlm.platform.cli import parser
from megavlm.platform.errors import CheckFailed, ConfigError, MegaVLMError
from megavlm.platform.runs.folder import default_runs_root

from ..profile import Preflight, load_profile
from . import launch
from .judge import Verdict, judge
from .table import table

EPILOG = """\
examples:
  megavlm preflight                                     this machine alone
  megavlm preflight --cluster dgx                       every idle node of the profile's partition
  megavlm preflight --cluster dgx --nodelist node[1-8] --kind full

Inside a job, its nodes are checked. Exits with 3 when a node is bad, and names it."""


def main(argv: Sequence[str]) -> int:
    """Check, print, and exit with 3 when any node is bad."""
    args = _arguments(argv)
    folder = _new_folder(args.out)
    if args.cluster is None:
        nodes, options = _here(folder, args.kind == "full"), Preflight()
    else:
        profile = load_profile(args.cluster)
        options = profile.preflight
        full = (args.kind or options.kind) == "full"
        nodes = launch.start(profile, folder, full, launch.Where(args.partition, args.nodes, args.nodelist))
        if not nodes:
            raise MegaVLMError("no node was checked", where="srun", fix="its message is above")
    verdict = judge(folder, nodes, options)
    print(json.dumps(answer(verdict, args.cluster, folder)) if args.json else table(verdict))
    print(f"records: {folder}", file=sys.stderr)
    return CheckFailed.exit_code if verdict.bad else 0


def answer(verdict: Verdict, cluster: str | None, folder: Path) -> dict[str, Any]:
    """The --json object: figures are in bytes per second and floating-point operations per second."""
    return {
        "cluster": cluster,
        "ok": not verdict.bad,
        "bad": verdict.bad,
        "notes": verdict.notes,
        "median": verdict.median,
        "usual": verdict.usual,
        "nodes": verdict.rows,
        "records": str(folder),
    }


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parse = parser("preflight", epilog=EPILOG)
    parse.add_argument("--cluster", metavar="NAME", help="a cluster profile; without it, this machine alone")
    which = parse.add_mutually_exclusive_group()
    which.add_argument("--nodes", type=int, metavar="N", help="so many nodes; default: all that are idle")
    which.add_argument("--nodelist", metavar="LIST", help="these nodes, such as n[1-4]")
    parse.add_argument("--partition", help="another one than the profile's")
    parse.add_argument("--kind", choices=("quick", "full"), help="full: with torch, matmul and all-reduce")
    parse.add_argument("--out", type=Path, help="a folder that all nodes see; its file system is what is measured")
    args = parse.parse_args(argv)
    if args.cluster is None and (args.nodes or args.nodelist or args.partition):
        raise ConfigError("which cluster?", where="--cluster", fix="add --cluster NAME")
    if args.nodes is not None and args.nodes < 1:
        raise ConfigError(f"{args.nodes} nodes", where="--nodes", fix="at least 1")
    return args


def _new_folder(out: Path | None) -> Path:
    """A folder of this check's own, below `out` or where runs lie."""
    within = (out or default_runs_root() / ".preflight").absolute()
    try:
        within.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=within))
    except OSError as error:
        fix = "give a folder that you may write and all nodes see"
        raise ConfigError(f"cannot make a folder in {within}: {error.strerror}", where="--out", fix=fix) from None


def _here(folder: Path, full: bool) -> list[str]:
    """This machine alone, in this process."""
    from .node import Node

    node = Node(folder, full)
    node.measure()
    node.write()
    return [node.name]
