"""Watches the node that the supervisor runs on, from another one.

A job that may lose nodes (--no-kill, for the sake of its spares) is left running by Slurm even when it loses the one
with the batch script: nobody would see the training stand still, until the time limit.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from megavlm.platform.runs import RunFolder

from ..commands import SlurmError
from . import history
from .allocation import ask, look, nodes_now
from .leave import requeue
from .order import Order
from .policy import Verdict
from .say import tell
from .srun import beside_words, environment

PARTS = 2.0  # looks in the time after which silence is a hang


class Guard:
    """The job step that does it, kept alive from here."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._process: subprocess.Popen[bytes] | None = None

    def keep(self, nodes: Sequence[str]) -> None:
        """Start it on the last of `nodes`, most likely a spare one, unless it runs or is not needed."""
        others = [node for node in nodes if node != self._order.host]
        if not self._order.spares or not others or (self._process and self._process.poll() is None):
            return
        order, module = self._order, "megavlm.slurm.supervisor.guard"
        told = [f"--run={order.run.root.resolve()}", f"--job={order.name}", f"--job-id={order.job_id}"]
        told += [f"--host={order.host}", f"--every={order.profile.hang.seconds / PARTS}"]
        told += [f"--restarts={order.restarts}", *(["--successor"] if order.successor else [])]
        words = [*beside_words("guard", others[-1:]), "--output=/dev/null", sys.executable, "-m", module, *told]
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment({}),
            start_new_session=True,
        )


def main(argv: Sequence[str]) -> int:
    """Wait until the supervisor's node is down; then send the job through the queue."""
    p = argparse.ArgumentParser(prog="python -m megavlm.slurm.supervisor.guard")
    p.add_argument("--run", type=Path, required=True)
    p.add_argument("--job", required=True)
    p.add_argument("--job-id", type=int, required=True)
    p.add_argument("--host", required=True, help="the node to watch")
    p.add_argument("--every", type=float, required=True, help="seconds between two looks")
    p.add_argument("--restarts", type=int, required=True)
    p.add_argument("--successor", action="store_true")
    args = p.parse_args(argv)
    while not is_down(args.host):
        time.sleep(args.every)
    write_down(RunFolder(args.run), args.job, args.job_id, args.host)
    if args.successor:  # it waits for this job to fail
        ask("scancel", str(args.job_id))
    else:
        requeue(args.job_id, args.restarts, (*look(args.job_id).excluded, args.host))
    return 0


def is_down(host: str) -> bool:
    """Whether Slurm has given the node up."""
    try:
        return "DOWN" in nodes_now((host,))[host].flags
    except (SlurmError, KeyError):
        return False


def write_down(run: RunFolder, name: str, job_id: int, host: str) -> None:
    """Judge the attempt in the supervisor's place."""
    reason = f"no answer from {host}, which the supervisor was on"
    told = {"verdict": Verdict.NODE_FAILURE, "action": "leave", "reason": reason, "exclude": [host], "exit_code": 1}
    for attempt in history.attempts_of(run, name, {job_id})[-1:]:
        tell(attempt, "judged", **told, job=name, job_id=job_id)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
