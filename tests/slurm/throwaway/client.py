"""What tests ask of a cluster: submit, look, wait, and leave it as it was."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

from .daemons import wait_for

# States that a job does not leave by itself; one that lost its node or was preempted may be queued again.
OVER = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"})


class Client:
    """The commands of the Slurm that `environment` names."""

    def __init__(self, environment: dict[str, str], shared: Path) -> None:
        self.environment, self.shared = environment, shared

    def run(self, *words: str, seconds: float = 60) -> str:
        """Standard output of a command; raises CalledProcessError with what it said on standard error."""
        done = self.attempt(*words, seconds=seconds)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, words, done.stdout, done.stderr)
        return done.stdout

    def attempt(self, *words: str, seconds: float = 60, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """The same where a failure is an answer; `text` goes to its standard input."""
        env = {**os.environ, **self.environment}
        return subprocess.run(words, env=env, capture_output=True, text=True, timeout=seconds, input=text)

    def submit(self, *options: str, script: str) -> int:
        """sbatch a script of shell lines, by default in the shared folder; the job's id."""
        text = script if script.startswith("#!") else f"#!/bin/bash\n{script}\n"
        words = ("sbatch", "--parsable", f"--chdir={self.shared}", "--open-mode=append", *options)
        done = self.attempt(*words, text=text)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, words, done.stdout, done.stderr)
        return int(done.stdout.split(";")[0])

    def job(self, job_id: int) -> dict[str, str]:
        """What `scontrol show job` tells, as words."""
        return self._show("job", str(job_id))

    def wait(self, job_id: int, *states: str, seconds: float = 30) -> dict[str, str]:
        """The job, as soon as it is in one of `states`.

        Raises AssertionError, with what the job is and the end of its log, when it is over in another way, or too late.
        """
        end = time.monotonic() + seconds
        while (job := self.job(job_id))["JobState"] not in states:
            late = time.monotonic() > end
            if late or job["JobState"] in OVER:
                told = f"{job['JobState']} ({job['Reason']}) {'still' if late else 'is its end'}, not {states}"
                raise AssertionError(f"job {job_id}: {told}\n{job}\n{self.log(job_id)[-4000:]}")
            time.sleep(0.1)
        return job

    def log(self, job_id: int) -> str:
        """What the job wrote to its standard output, "" before it did."""
        path = Path(self.job(job_id).get("StdOut", ""))
        return path.read_text(errors="replace") if path.is_file() else ""

    def node(self, name: str) -> dict[str, str]:
        """What `scontrol show node` tells, as words."""
        return self._show("node", name)

    def wait_idle(self, seconds: float = 30) -> None:
        """Until no job runs and every node could take one; raises TimeoutError."""
        wait_for(self._all_idle, seconds, "idle nodes", every=0.1)

    def _show(self, what: str, name: str) -> dict[str, str]:
        text = self.run("scontrol", "show", what, "--oneliner", name)
        return dict(re.findall(r"(?:^|\s)([A-Z][\w:/]*)=(.*?)(?=\s+[A-Z][\w:/]*=|\s*$)", text))

    def _all_idle(self) -> bool:
        states = self.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T").split()
        return set(states) == {"idle"}
