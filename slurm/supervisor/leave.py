"""Back into the queue as the same job, without the nodes that failed it."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from ..commands import SlurmError
from .allocation import FOREVER, ask, look
from .say import say


def requeue(job_id: int, restarts: int, exclude: Sequence[str], patience: float = FOREVER) -> bool:
    """Have Slurm start this job again; False when it refuses. From here on TERM is not listened to.

    The excluded nodes of a job can be changed only while it is not running: that is, between the requeue and the end of
    this process, which Slurm announces by TERM.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the commands below inherit it: the signal goes to all of the job
    try:
        ask("scontrol", "requeue", str(job_id), patience=patience)
    except SlurmError as error:
        if not _is_requeued(job_id, restarts, patience):
            say(f"cannot be requeued: {error.what}")
            return False
    say(f"requeued{' without ' + ', '.join(exclude) if exclude else ''}")
    if exclude:
        _exclude(job_id, exclude, patience)
    return True


def _is_requeued(job_id: int, restarts: int, patience: float) -> bool:
    try:
        return look(job_id, patience).restarts > restarts
    except SlurmError:
        return False


def _exclude(job_id: int, nodes: Sequence[str], patience: float) -> None:
    try:
        ask("scontrol", "update", f"JobId={job_id}", f"ExcNodeList={','.join(nodes)}", patience=patience)
    except SlurmError as error:
        say(f"{', '.join(nodes)} cannot be excluded: {error.what}")
