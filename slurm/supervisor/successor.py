"""Where requeueing is forbidden: a job that waits for this one to fail and then goes on, and whoever waits for both."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence

from megavlm.platform.runs import RunFolder

from .. import jobs
from ..chains import submitted
from ..commands import SlurmError
from ..send import sbatch_words
from .allocation import ask
from .dependency import given_back, handed_on
from .say import say

PATIENCE = 60.0


class Successor:
    """The next job of this name, which starts when this one fails; where this one ends well, Slurm drops it."""

    def __init__(self, run: RunFolder, name: str, me: int) -> None:
        self._run, self._name, self._me = run, name, me
        self.job_id: int | None = self._known()

    def _known(self) -> int | None:
        """The one that an earlier start of this very job has sent already."""
        ids = [job.job_id for job in submitted(self._run).get(self._name, [])]
        later = ids[ids.index(self._me) + 1 :] if self._me in ids else []
        return later[0] if later else None

    def send(self, exclude: Sequence[str] = ()) -> None:
        """Submit it unless it is there, and have everything that waits for this job wait for either."""
        try:
            if self.job_id is None:
                self.job_id = self._submit(exclude)
                say(f"job {self.job_id} waits to go on where this one stops")
            elif exclude:
                ask("scontrol", "update", f"JobId={self.job_id}", f"ExcNodeList={','.join(exclude)}")
            self._rewrite(handed_on, self.job_id)
        except SlurmError as error:
            say(f"nobody may go on where this job stops: {error.what}")

    def _submit(self, exclude: Sequence[str]) -> int:
        script = jobs.folder(self._run, self._name) / jobs.SCRIPT
        *words, path = sbatch_words(script, f"afternotok:{self._me}")
        without = [f"--exclude={','.join(exclude)}"] if exclude else []
        job_id = int(ask(*words, *without, path).split(";")[0])
        self._write_down(job_id)
        return job_id

    def _write_down(self, job_id: int) -> None:
        earlier = submitted(self._run).get(self._name)
        try:
            if earlier:
                jobs.add(self._run, dataclasses.replace(earlier[-1], job_id=job_id, after=[], by="successor"))
        except OSError as error:
            say(f"job {job_id} cannot be written down: {error}")

    def dismiss(self, success: bool) -> None:
        """Cancel it. After `success`, whoever waits for it and for others waits for this job again."""
        if self.job_id is None:
            return
        try:
            if success:
                self._rewrite(given_back, self.job_id)
            ask("scancel", str(self.job_id), patience=PATIENCE)
        except SlurmError as error:  # it finds out by itself that there is nothing to do
            say(f"its successor, job {self.job_id}, cannot be cancelled: {error.what}")

    def _rewrite(self, rule: Callable[[str, int, int], str | None], successor: int) -> None:
        """Give every waiting job of this user the dependency that `rule` makes of its own."""
        words = (f"--user={os.getuid()}", "--states=PENDING", "--noheader", "--format=%A|%E")
        for row in ask("squeue", *words, patience=PATIENCE).splitlines():
            job_id, _, told = row.strip().partition("|")
            dependency = rule(told, self._me, successor)
            if dependency and job_id != str(successor):
                self._update(job_id, dependency)

    def _update(self, job_id: str, dependency: str) -> None:
        try:
            ask("scontrol", "update", f"JobId={job_id}", f"Dependency={dependency}", patience=PATIENCE)
        except SlurmError as error:
            say(f"job {job_id} cannot be made to wait for {dependency}: {error.what}")
