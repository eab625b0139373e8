"""kill -9 at any moment, and the same command: the result is that of a run nobody disturbed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from megavlm.data_curation.ledger import Ledger

OWN = {"attempts", "ledger", "config.yaml", "provenance.json", "metrics.jsonl", "finished", "funnel.json"}
SHARDS = 6


def outputs(run: Path) -> dict[str, bytes]:
    """Everything a run decides or copies; times, logs and the driver's own records left out."""
    files = (path for path in run.rglob("*") if path.is_file())
    kept = {str(p.relative_to(run)): p for p in files if p.relative_to(run).parts[0] not in OWN}
    # what a killed writer leaves beside its target is hidden (.name.*) and belongs to no result
    return {name: p.read_bytes() for name, p in kept.items() if not any(part.startswith(".") for part in p.parts[-3:])}


def start(recipe: Path, run: Path, *overrides: str) -> psutil.Popen:
    command = [sys.executable, "-m", "megavlm.platform.cli", "curate", "run", str(recipe), *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return psutil.Popen(
        [*command, "--out", str(run)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )


def finish(recipe: Path, run: Path) -> None:
    process = start(recipe, run)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()


def kill_at(recipe: Path, run: Path, markers: int, victim: str, *overrides: str) -> int:
    """Start, kill -9 as soon as the ledger holds `markers` finished tasks; returns how many it held when it died."""
    process = start(recipe, run, *overrides)
    doomed: list[psutil.Process] = []
    while not doomed:
        assert process.poll() is None, process.stderr.read().decode()
        if count(run) >= markers:
            workers = process.children(recursive=True)
            doomed = {"driver": [process], "worker": busy(run, workers), "all": [process, *workers]}[victim]
        time.sleep(0.002)
    for one in doomed:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.communicate(timeout=60)
    assert process.returncode == (1 if victim == "worker" else -signal.SIGKILL)
    return count(run)


def busy(run: Path, workers: list[psutil.Process]) -> list[psutil.Process]:
    """A worker that has not done all of its tasks, stopped; without it its driver would have nothing to complain of."""
    for worker in workers:
        with contextlib.suppress(psutil.Error, ValueError):
            worker.suspend()
            words = worker.cmdline()
            state = Ledger(run / "ledger").state(words[words.index("--stage") + 1])
            if not {int(task) for task in words[words.index("--task") + 1].split(",")} <= state.keys():
                return [worker]
            worker.resume()
    return []


def count(run: Path) -> int:
    """How many tasks the ledger holds as done."""
    ledger = Ledger(run / "ledger")
    stages = [folder.name for folder in (run / "ledger").glob("*/")]
    return sum(line.fingerprint is not None for stage in stages for line in ledger.state(stage).values())


def forget(run: Path, stage: str, task: int) -> None:
    """Take a task's lines out of the ledger, as if its worker had died before it wrote them."""
    (run / "ledger" / stage / "summary.json").unlink()
    whole = run / "ledger" / stage / "all.jsonl"
    lines = whole.read_bytes().splitlines(keepends=True)
    whole.write_bytes(b"".join(line for line in lines if json.loads(line)["task"] != task))


@pytest.fixture(scope="module")
def recipe(tools, tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    tools.small_crawl(folder / "raw", shards=SHARDS, per_shard=8)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tools.recipe(folder / "raw"), sort_keys=False))
    return path


@pytest.fixture(scope="module")
def whole(recipe):
    """A run that nobody disturbed."""
    finish(recipe, recipe.parent / "whole")
    return recipe.parent / "whole"


def test_killed_three_times_at_random_it_ends_as_if_undisturbed(recipe, whole, tmp_path):
    """A worker, then all processes, then a driver that works itself; benchmarks/campaigns/random_kills.py does more."""
    chance, total = random.Random(1), count(whole)
    local = ("curation.executor.name=local", "curation.executor.workers=2", "curation.executor.tasks_per_command=2")
    killed = [
        kill_at(recipe, tmp_path / "killed", chance.randrange(SHARDS), "worker", *local),
        kill_at(recipe, tmp_path / "killed", chance.randrange(SHARDS, 2 * SHARDS), "all", *local),
        kill_at(recipe, tmp_path / "killed", chance.randrange(2 * SHARDS, 3 * SHARDS), "driver"),
    ]
    assert killed == sorted(killed) and killed[-1] < total, "finished tasks are never undone"
    assert not (tmp_path / "killed" / "finished").exists()
    finish(recipe, tmp_path / "killed")
    assert outputs(tmp_path / "killed") == outputs(whole)
    assert (tmp_path / "killed" / "finished").exists()


def test_outputs_without_a_marker_are_written_anew(recipe, whole, tmp_path):
    """What a task leaves when it dies before its marker may be anything: here it is rubbish in every place."""
    run = shutil.copytree(whole, tmp_path / "run")
    for stage, task, files in [
        ("filter", 2, ["filter/00002.parquet"]),
        ("embed", 1, ["embed/00001.parquet", "embed/00001.zarr/zarr.json"]),
        ("cluster", 0, ["cluster/centroids.npy", "cluster/mean.npy"]),
        ("deduplicate", 0, ["deduplicate/pairs.parquet", "deduplicate/00003.parquet"]),
        ("export", 0, ["export/000000-00000.tar", "export/000000-00000.index.parquet"]),
    ]:
        forget(run, stage, task)
        for file in files:
            (run / file).write_bytes(b"half")
    torn = (run / "ledger" / "select" / "all.jsonl").read_bytes()[:-20]
    forget(run, "select", 0)
    (run / "ledger" / "select" / "part-torn.jsonl").write_bytes(torn)
    finish(recipe, run)
    assert outputs(run) == outputs(whole)


def test_asked_to_stop_it_saves_and_exits_4_then_goes_on(recipe, whole, tmp_path):
    run = tmp_path / "run"
    process = start(recipe, run)
    while count(run) < 1 and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 4, errors.decode()
    assert (run / "saved").exists() and not (run / "finished").exists()
    finish(recipe, run)
    assert outputs(run) == outputs(whole)
