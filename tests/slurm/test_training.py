"""Real training on a real Slurm: over nodes, through a dead node and the time limit, and to the bit what it would be.

What is compared with ran on this machine without Slurm, in the same layout: two tensor-parallel ranks.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megavlm.megatron_mm.data.manifest import Manifest
from megavlm.megatron_mm.data.stats import stats
from megavlm.platform.runs import RunFolder
from megavlm.slurm import jobs
from megavlm.slurm.submit import main as submit

pytestmark = [pytest.mark.slurm, pytest.mark.multiprocess, pytest.mark.timeout(1000)]

SHORT, LONG = 60, 150  # steps; at a constant rate a shorter training is how a longer one begins
OVERRIDES = ("stages.language.optimizer.schedule=constant", "stages.language.checkpoint.every=20")
NEXT_STEP_SECONDS = 120


def words(recipe: Path, steps: int, out: Path) -> list[str]:
    """A training of one stage, tensor-parallel over two ranks."""
    return [str(recipe), "--stage", "language", *OVERRIDES, f"stages.language.steps={steps}", "--out", str(out)]


@pytest.fixture(scope="module")
def unbroken(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], RunFolder]]:
    """`unbroken(steps)`: the longest training, without Slurm, once it has done so many; it runs beside the tests."""
    run = RunFolder(tmp_path_factory.mktemp("unbroken") / "run")
    command = [sys.executable, "-m", "megavlm.platform.cli", "train", *words(recipe, LONG, run.root), "--nproc", "2"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "MEGAVLM_QUIET": "1"}
    process = subprocess.Popen(command, env=env)

    def after(steps: int) -> RunFolder:
        end = time.monotonic() + 200
        while not any(line["step"] == steps for line in run.metrics()):
            assert time.monotonic() < end and process.poll() in {None, 0}
            time.sleep(0.1)
        return run

    yield after
    process.kill()
    process.wait()


class Training:
    """A training that was submitted, and its job."""

    def __init__(self, cluster: Any, recipe: Path, profile: Path, steps: int, name: str, *more: str) -> None:
        self.cluster, self.steps, self.run = cluster, steps, RunFolder(cluster.shared / name)
        assert submit([*words(recipe, steps, self.run.root), "--cluster", str(profile), "--nodes", "2", *more]) == 0
        self.job_id = jobs.current(self.run)["language"].job_id

    def figures(self) -> dict[int, tuple[float, float]]:
        """step -> (loss, gradient norm), the last line where a step was repeated."""
        lines = self.run.metrics(unique=("stage", "step"))
        return {line["step"]: (line["loss"], line["grad_norm"]) for line in lines}

    def step(self) -> int:
        """The furthest step so far."""
        return max(self.figures(), default=0)

    def until(self, true: Callable[[], Any], what: str, seconds: float = 100) -> None:
        """Until something is true; everything that was said is shown when it does not come."""
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, f"no {what} within {seconds} s\n{self.told()}"
            time.sleep(0.1)

    def told(self) -> str:
        """The job's log, and the attempts' events."""
        logs = [path.read_text() for path in self.run.path("jobs").rglob("slurm-*.log")]
        events = [str(event) for attempt in self.run.attempts() for event in attempt.events()]
        return "\n".join([*logs, *events])

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Every event of a kind, over all attempts."""
        return [event for attempt in self.run.attempts() for event in attempt.events() if event["kind"] == kind]

    def send(self, number: signal.Signals) -> None:
        """To all of its ranks."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode(errors="replace").split("\0")
            except OSError:  # it is gone
                continue
            if words[1:5] == ["-u", "-m", "megavlm.megatron_mm.training.worker", str(self.run.root)]:
                os.kill(int(path.parent.name), number)

    def restarts(self) -> int:
        """How often Slurm requeued the job."""
        return int(self.cluster.job(self.job_id)["Restarts"])

    def ends_like(self, after: Callable[[int], RunFolder], seconds: float = 600) -> None:
        """It ends well, to the bit what an unbroken run is, and every packed sample was learnt once."""
        self.cluster.wait(self.job_id, "COMPLETED", seconds=seconds)
        unbroken = after(self.steps)
        whole = {line["step"]: (line["loss"], line["grad_norm"]) for line in unbroken.metrics()}
        mine = self.figures()
        assert list(mine) == list(range(1, self.steps + 1)), self.told()
        assert mine == {step: whole[step] for step in mine}
        manifests = [Manifest(run.path("stages", "language", "packs")) for run in (self.run, unbroken)]
        learnt = sum(line["targets"] for line in self.run.metrics(unique=("stage", "step")))
        assert learnt == stats(manifests[0])["tokens_learnt"]
        samples = [[manifest[row] for row in range(len(manifests[0]))] for manifest in manifests]
        assert samples[0] == samples[1] and len(manifests[0]) == 2 * self.steps


def test_two_nodes_train_what_one_machine_trains(cluster, recipe: Path, profile, unbroken) -> None:
    training = Training(cluster, recipe, profile(), SHORT, "two-nodes")
    training.ends_like(unbroken)
    (launched,) = training.events("launched")
    assert launched["nodes"] == ["n1", "n2"] and launched["processes"] == 2
    beats = training.run.attempts()[0].heartbeats()
    assert [(beat["rank"], beat["doing"], beat["step"]) for beat in beats] == [(n, "evaluate", SHORT) for n in (0, 1)]
    assert not cluster.netns or [beat["host"] for beat in beats] == ["n1", "n2"]


def test_a_dead_node_and_the_time_limit_change_nothing(fresh_cluster, recipe: Path, profile, unbroken) -> None:
    cluster, patient = fresh_cluster, {"hang": {"seconds": 60, "other_seconds": 120}}
    # Slurm tells of the time limit up to half a minute early, and enforces it half a minute after it told.
    limited = profile(**patient, minutes=1, save_seconds=5, sbatch={"nodelist": "n1,n2"})
    timed = Training(cluster, recipe, limited, LONG, "timed")
    timed.until(lambda: timed.step() > 0, "step")
    timed.send(signal.SIGSTOP)  # so that it is not over before its time is
    timed.until(lambda: timed.events("asked"), "word of the time limit")
    timed.send(signal.SIGCONT)
    spared = Training(
        cluster, recipe, profile(**patient, sbatch={"nodelist": "n2,n3,n4"}), LONG, "spared", "--spares", "1"
    )
    cluster.run("scontrol", "update", "nodename=n1,n2", "state=drain", "reason=so that the next job starts beside them")
    unspared = Training(cluster, recipe, profile(**patient), LONG, "unspared")
    cluster.wait(unspared.job_id, "RUNNING", seconds=20)
    cluster.run("scontrol", "update", "nodename=n1,n2", "state=resume")
    for training in (spared, unspared):
        training.until(lambda training=training: training.step() > 25, "checkpoint")
        assert "n3" in training.events("launched")[0]["nodes"], training.told()

    reached, at = spared.step(), time.time()
    cluster.kill_node("n3")

    def goes_on() -> bool:
        return any(line["attempt"] == 2 and line["step"] > reached for line in spared.run.metrics())

    spared.until(goes_on, "next step", NEXT_STEP_SECONDS)
    first = min(line["time"] for line in spared.run.metrics() if line["attempt"] == 2)
    print(f"first step {first - at:.1f} s after the power was pulled")
    assert first - at < NEXT_STEP_SECONDS and spared.restarts() == 0
    first, second = [set(event["nodes"]) for event in spared.events("launched")]
    assert first < {"n2", "n3", "n4"} and len(first) == 2 and "n3" in first and second == {"n2", "n4"}
    assert {event["job_id"] for event in spared.events("launched")} == {spared.job_id}

    spared.ends_like(unbroken)
    assert spared.restarts() == 0
    unspared.ends_like(unbroken)
    assert unspared.restarts() == 1 and "n3" not in unspared.events("launched")[-1]["nodes"]
    timed.ends_like(unbroken)
    assert timed.restarts() >= 1
    assert "time limit" in [event["why"] for event in timed.events("asked")]
    assert [event["verdict"] for event in timed.events("judged")][-1] == "finished"
    saved = [event["step"] for event in timed.events("saved_on_request")]
    print(f"saved for the time limit at steps {saved} of {LONG}")
    assert any(0 < step < LONG for step in saved)
