"""Whether the nodes are to be given back, and why: a signal, or a person who cancelled the run."""

from __future__ import annotations

import signal
import time
from types import FrameType

from megavlm.platform.runs import RunFolder
from megavlm.platform.runs.signals import ASKING

from ..commands import SlurmError
from ..jobs import CANCELLED
from .allocation import Allocation, look
from .say import say

PATIENCE = 5.0  # seconds for Slurm to say why; a job that it is ending has few of them
EARLY = 120.0  # so much before its time a signal that announces the time limit may come: Slurm's timer is coarse


class Wish:
    """Listens from the moment it is made. Main thread only.

    why: None, or "cancel", "time limit", "preemption", "requeue" or "signal". going: Slurm is ending the job, this
    process has seconds left.
    """

    def __init__(self, run: RunFolder, job_id: int, restarts: int, save_seconds: float) -> None:
        self.why: str | None = None
        self.going = False
        self._run, self._job_id, self._restarts, self._save_seconds = run, job_id, restarts, save_seconds
        self._unread = False
        for number in ASKING:
            signal.signal(number, self._hear)

    def heard(self) -> bool:
        """Whether there is news, or was some."""
        return self._unread or self.why is not None

    def news(self) -> bool:
        """Whether something has come since the last call."""
        if self._unread:
            self._unread = False
            self._explain()
            return True
        if self.why != "cancel" and self._run.path(CANCELLED).exists():
            self.why = "cancel"
            return True
        return False

    @property
    def cancelled(self) -> bool:
        """Whether a person said stop."""
        return self.why == "cancel"

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._unread = True

    def _explain(self) -> None:
        try:
            job = look(self._job_id, PATIENCE)
        except SlurmError as error:
            say(f"a signal came, and Slurm does not say why: {error.what}")
            self.why = self.why or "signal"
            return
        self.going = job.going
        if not self.cancelled:
            self.why = explain(job, self._restarts, time.time(), self._save_seconds)


def explain(job: Allocation, restarts: int, now: float, save_seconds: float) -> str:
    """Why a signal came, from what Slurm says of the job; `restarts` is how often it was requeued before this."""
    if job.going and job.restarts > restarts:
        return "requeue"  # by an admin or by Slurm, a preemption above all
    if job.preempted:
        return "preemption"
    if job.going:
        return "time limit" if now >= job.ends else "cancel"
    return "time limit" if job.ends - now <= save_seconds + EARLY else "signal"
