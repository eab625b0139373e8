"""What has become of an array's tasks, without accounting: where there is none, submitit itself waits for ever."""

from __future__ import annotations

import time

from submitit.slurm.slurm import SlurmInfoWatcher

from megavlm.platform.errors import MissingPackage

from ..commands import SlurmError, attempt
from ..queue import ENDED

SECONDS = 10.0  # between two questions once an array has run for a while; at first they come every two seconds
FORGOTTEN = "FORGOTTEN"  # by Slurm, MinJobAge seconds after the end
FIELDS = "JobID|State|NodeList"


class SqueueWatcher(SlurmInfoWatcher):
    """One call of squeue for all jobs that were registered and have not ended."""

    def __init__(self) -> None:
        super().__init__(delay_s=int(SECONDS))

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Whether it has ended. submitit's own list takes a suspended job for done and a preempted one for running."""
        return self.get_state(job_id, mode=mode) in ENDED | {FORGOTTEN}

    def describe(self, job_id: str) -> str:
        """A job as last heard of."""
        info = self.get_info(job_id, mode="cache")
        return f"job {job_id}, {info.get('State', 'UNKNOWN')} on {info.get('NodeList') or 'no node'}"

    def update(self) -> None:
        """Ask. When nobody answers, everything stays as it was until the next time."""
        waiting = self._registered - self._finished
        arrays = sorted({job_id.split("_")[0] for job_id in waiting})
        text = _ask(arrays) if arrays else None
        self._last_status_check = time.time()
        if text is None:
            return
        self._num_calls += 1
        self._info_dict |= dict.fromkeys(waiting, {"State": FORGOTTEN}) | self.read_info(f"{FIELDS}\n{text}")
        self._finished |= {job_id for job_id in waiting if self.is_done(job_id, mode="cache")}


def _ask(arrays: list[str]) -> str | None:
    words = ("squeue", "--states=all", "--array", "--noheader", "-j", ",".join(arrays), "-o", "%i|%T|%N")
    try:
        done = attempt(*words)
    except (MissingPackage, SlurmError):
        return None
    if "Invalid job id" in done.stderr:  # it has forgotten all of them
        return ""
    return None if done.returncode else done.stdout
