"""The job step of one attempt: started, looked at, ended."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..commands import SlurmError, run
from .say import say
from .srun import environment

GRACE_SECONDS = 10.0  # srun ends by itself once all tasks are gone, or known to be lost
GONE_SECONDS, POLL_SECONDS = 60.0, 1.0
SHORT = 15.0
NODE_FAILED = re.compile(r"Node failure on (\S+)")
LATEST = 1 << 16  # characters of srun's own output in which its last words are looked for


class Step:
    """One srun, with what it and its tasks print in `log`."""

    def __init__(self, name: str, words: Sequence[str], extra: Mapping[str, str], job_id: int, log: Path) -> None:
        self.name, self.job_id, self.log = name, job_id, log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment(extra),
                start_new_session=True,  # a signal for the supervisor's group is not for the step
            )

    def poll(self) -> int | None:
        """srun's exit code once it has ended: the highest of its tasks', 128 + n for one that signal n killed."""
        code = self._process.poll()
        return 128 - code if code is not None and code < 0 else code

    def lost_a_node(self) -> bool:
        """Whether srun was told that a node failed; with --no-kill the other nodes' tasks live on, and wait for it."""
        return NODE_FAILED.search(self.last_words()) is not None

    def last_words(self) -> str:
        """The end of what srun and the tasks printed."""
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - LATEST))
            return file.read().decode(errors="replace")
        return ""

    def kill(self, seconds: float = GONE_SECONDS) -> None:
        """End it for good, tasks that are stopped or do not listen included; waits `seconds` until Slurm has let it go.

        Slurm does not let go of a step before it has given up a node that is gone, which may take minutes.
        """
        end = time.monotonic() + seconds
        self._process.terminate()  # srun kills its tasks itself, without slurmctld
        while (number := self._listed()) and time.monotonic() < end:
            with contextlib.suppress(SlurmError):
                run("scancel", f"{self.job_id}.{number}", seconds=SHORT)
            time.sleep(POLL_SECONDS)
        if not self._wait(GRACE_SECONDS):
            self._process.kill()
            self._process.wait()

    def _wait(self, seconds: float) -> bool:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _listed(self) -> str | None:
        """The step's number as Slurm lists it, None when it is not listed or Slurm does not answer."""
        words = ("squeue", "--noheader", "--steps", f"--jobs={self.job_id}", "--format=%i|%j")
        try:
            rows = [row.partition("|") for row in run(*words, seconds=SHORT).splitlines()]
        except SlurmError as error:
            say(error.what)
            return None
        return next((step.rpartition(".")[2].strip() for step, _, name in rows if name.strip() == self.name), None)
