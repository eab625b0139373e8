"""`python -m megavlm.slurm.supervisor --run RUN --job NAME --nodes N --spares K [--successor] -- VERB ARGS...`.

A job's script ends by becoming this process, so that signals for the batch script arrive here.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from megavlm.platform.config.tree import parse_yaml
from megavlm.platform.errors import MegaVLMError
from megavlm.platform.runs import RunFolder

from .. import jobs
from ..profile import ClusterProfile, parse_profile
from .allocation import own_job_id, own_restarts
from .order import Order
from .run import Supervisor
from .say import say


def main(argv: Sequence[str]) -> int:
    """The job's exit code: its verb's, or 1 and a reason in the log."""
    try:
        return Supervisor(order(argv)).work()
    except MegaVLMError as error:
        say(f"gives up: {error}")
        return error.exit_code


def order(argv: Sequence[str]) -> Order:
    """The command line, the job's profile and Slurm's environment as one; raises MegaVLMError for what cannot be."""
    p = argparse.ArgumentParser(prog="python -m megavlm.slurm.supervisor")
    p.add_argument("--run", type=Path, required=True, help="the run folder")
    p.add_argument("--job", required=True, help="the job's name: a stage, or a verb")
    p.add_argument("--nodes", type=int, required=True, help="nodes that one attempt works on")
    p.add_argument("--spares", type=int, default=0, help="nodes allocated beside them")
    p.add_argument("--successor", action="store_true", help="requeueing is forbidden: hand on to a job of its own")
    p.add_argument("verb", nargs="+", help="-- VERB ARGS...")
    args = p.parse_args(argv)
    run = RunFolder(args.run)
    return Order(
        run=run,
        name=args.job,
        nodes=args.nodes,
        spares=args.spares,
        verb=tuple(args.verb),
        profile=read_profile(jobs.folder(run, args.job) / jobs.PROFILE),
        job_id=own_job_id(),
        restarts=own_restarts(),
        host=os.environ.get("SLURMD_NODENAME", ""),
        successor=args.successor,
    )


def read_profile(path: Path) -> ClusterProfile:
    """The profile as it was when the job was submitted."""
    return parse_profile(parse_yaml(path.read_text(), where=str(path)), path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
