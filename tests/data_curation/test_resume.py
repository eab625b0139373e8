"""kill -9 at any moment, and the same command: the result is that of a run nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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


def start(recipe: Path, run: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "megavlm.platform.cli", "curate", "run", str(recipe), "--out", str(run)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def finish(recipe: Path, run: Path) -> None:
    process = start(recipe, run)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()


def kill_at(recipe: Path, run: Path, markers: int) -> int:
    """Start, kill -9 as soon as the ledger holds `markers` finished tasks; returns how many it held when it died."""
    process = start(recipe, run)
    deadline = time.monotonic() + 60
    while count(run) < markers and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return count(run)


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


@pytest.fixture
def recipe(tools, tmp_path):
    tools.small_crawl(tmp_path / "raw", shards=SHARDS, per_shard=8)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tools.recipe(tmp_path / "raw"), sort_keys=False))
    return path


def test_killed_at_many_points_it_ends_as_if_undisturbed(recipe, tmp_path):
    finish(recipe, tmp_path / "whole")
    total = count(tmp_path / "whole")
    killed = [
        kill_at(recipe, tmp_path / "killed", markers) for markers in (1, 3, SHARDS + 2, 2 * SHARDS + 3, total - 6)
    ]
    assert killed == sorted(killed) and killed[0] < total, "finished tasks are never undone"
    assert not (tmp_path / "killed" / "finished").exists()
    finish(recipe, tmp_path / "killed")
    assert outputs(tmp_path / "killed") == outputs(tmp_path / "whole")
    assert (tmp_path / "killed" / "finished").exists()


def test_outputs_without_a_marker_are_written_anew(recipe, tmp_path):
    """What a task leaves when it dies before its marker may be anything: here it is rubbish in every place."""
    run = tmp_path / "run"
    finish(recipe, run)
    whole = outputs(run)
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
    assert outputs(run) == whole


def test_asked_to_stop_it_saves_and_exits_4_then_goes_on(recipe, tmp_path):
    run = tmp_path / "run"
    process = start(recipe, run)
    while count(run) < 1 and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 4, errors.decode()
    assert (run / "saved").exists() and not (run / "finished").exists()
    finish(recipe, run)
    finish(recipe, tmp_path / "whole")
    assert outputs(run) == outputs(tmp_path / "whole")
