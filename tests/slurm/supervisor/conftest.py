"""Jobs of the torch-free verb under the supervisor, as a user's submission would leave them."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megavlm.platform.runs import RunFolder
from megavlm.slurm import jobs, send
from megavlm.slurm.profile import load_profile
from megavlm.slurm.script import JobScript, render

SRC = Path(__file__).resolve().parents[3] / "src"
SAMPLES = 8  # of a step, whatever the number of nodes


@dataclasses.dataclass(frozen=True)
class Job:
    """A submitted job of `steps` on the cluster it was sent to."""

    cluster: Any
    run: RunFolder
    job_id: int

    def wait(self, *states: str, seconds: float = 60) -> dict[str, str]:
        """Until it is over, or in one of `states`."""
        return self.cluster.wait(self.job_id, *(states or ("COMPLETED",)), seconds=seconds)

    def until(self, true: Callable[[], Any], what: str, seconds: float = 40) -> None:
        """Until something is true; the job's log is shown when it does not come."""
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end:
                raise AssertionError(f"no {what} within {seconds} s\n{self.log}")
            time.sleep(0.1)

    def until_step(self, step: int, attempt: int = 1) -> None:
        """Until the run has done this step in this attempt."""
        done = lambda: any(m["step"] >= step and m["attempt"] >= attempt for m in self.run.metrics())  # noqa: E731
        self.until(done, f"step {step} of attempt {attempt}")

    def stop(self, rank: int) -> None:
        """SIGSTOP for a rank of the first attempt, from inside of its node."""
        beat = next(beat for beat in self.run.attempts()[0].heartbeats() if beat["rank"] == rank)
        node = self.events("launched")[0]["nodes"][rank]
        self.cluster.run(*self.cluster.inside(node, "kill", "-STOP", str(beat["pid"])))

    @property
    def log(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.run.path("jobs").rglob("slurm-*.log")))

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Every event of a kind, over all attempts."""
        return [event for attempt in self.run.attempts() for event in attempt.events() if event["kind"] == kind]

    def verdicts(self) -> list[tuple[str, str]]:
        """(verdict, action) of every attempt."""
        return [(event["verdict"], event["action"]) for event in self.events("judged")]

    def unbroken(self, steps: int) -> bool:
        """Whether it ended with the hash of an unbroken run, every sample seen exactly once."""
        lines = self.run.metrics(unique=("stage", "step"))
        samples = [sample for line in lines for sample in line["samples"]]
        return self.run.finished and samples == list(range(steps * SAMPLES)) and lines[-1]["loss"] == digest(steps)


def digest(steps: int) -> str:
    """The last hash of a run that nothing broke, worked out without any cluster."""
    from megavlm_steps.chain import Chain

    chain = Chain()
    for step in range(steps):
        chain = chain.after(list(range(step * SAMPLES, (step + 1) * SAMPLES)))
    return chain.loss


@pytest.fixture
def steps_job(steps_worker, profile) -> Callable[..., Job]:
    """`steps_job(cluster, "name", "--steps", "9", nodes=2, ...) -> Job`, submitted; more keywords go to the profile."""

    def submit(
        cluster: Any,
        name: str,
        *flags: str,
        nodes: int = 1,
        spares: int = 0,
        successor: bool = False,
        root: Path | None = None,
        cancelled: bool = False,
        **keys: Any,
    ) -> Job:
        run = RunFolder((root or cluster.shared) / name)
        command = ["steps", str(run.root), *flags]
        script = JobScript(
            run=run.root,
            name="steps",
            profile=load_profile(str(profile(**keys))),
            nodes=nodes,
            spares=spares,
            command=command,
            code=SRC,
            folder=run.root,
            python=sys.executable,
            variables={},
            successor=successor,
        )
        path = send.write(run, script, render(script))
        if cancelled:
            run.path(jobs.CANCELLED).touch()
        sizes = {"nodes": nodes, "spares": spares, "gpus_per_node": 1, "processes_per_node": 1}
        told = {"job_id": 0, "cluster": "throwaway", "script": str(path), "command": command, "after": []}
        sent = send.send(run, jobs.SubmittedJob("steps", by="submit", **told, **sizes))
        return Job(cluster, run, sent.job_id)

    return submit
