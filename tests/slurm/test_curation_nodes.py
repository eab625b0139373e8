"""One curation on one machine, and the same as arrays whose K-means sums are shared by nodes: the same bytes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]
OWN = {"attempts", "ledger", "config.yaml", "provenance.json", "metrics.jsonl", "finished", "funnel.json"}


@pytest.fixture
def crawls(monkeypatch):
    """What tests/data_curation makes small crawls with."""
    place = Path(__file__).parents[1] / "data_curation" / "conftest.py"
    spec = importlib.util.spec_from_file_location("crawls", place)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "crawls", module)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def start(tree: dict, folder: Path, name: str, parts: int, executor: dict) -> subprocess.Popen[str]:
    tree["curation"]["stages"]["cluster"]["parts"] = parts
    whole = tree | {"curation": tree["curation"] | {"executor": executor}}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    words = ["curate", "run", str(folder / f"{name}.yaml"), "--out", str(folder / name)]
    command = [sys.executable, "-m", "megavlm.platform.cli", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def outputs(run: Path) -> dict[str, bytes]:
    """Everything a run decides or copies."""
    files = [path for path in run.rglob("*") if path.is_file() and path.relative_to(run).parts[0] not in OWN]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def nodes(run: Path, stage: str) -> list[list[str]]:
    """For every array of a stage, the node of each command that a worker began, as its board tells."""
    found = []
    for board in sorted(run.glob(f"attempts/*/logs/curate-{stage}-arrays/*")):
        told = [json.loads(line) for path in (board / "results").iterdir() for line in path.read_text().splitlines()]
        found.append([line["node"] for line in told if "begun" in line])
    return found


def test_kmeans_sums_of_two_nodes_give_the_centroids_and_the_export_of_one_machine(cluster, profile, crawls, tmp_path):
    crawls.small_crawl(tmp_path / "raw", shards=4, per_shard=8)
    tree = crawls.recipe(tmp_path / "raw", cluster={"iterations": 2})
    # no node has room for both workers; the quicker one may do all of an iteration, though hardly of both
    arrays = {"name": "slurm", "workers": 2, "tasks_per_command": 2, "cluster": str(profile(cpus_per_task=5))}
    runs = [
        start(tree, tmp_path, "here", 1, {"name": "in_process", "workers": 0}),
        start(tree, tmp_path, "nodes", 4, arrays),
    ]
    for run in runs:
        _, errors = run.communicate(timeout=280)
        assert run.returncode == 0, errors
    rounds = nodes(tmp_path / "nodes", "cluster")
    assert [len(began) for began in rounds] == [4, 4, 1, 4, 4, 1], "means, rows, beginning, two iterations, end"
    assert any(len(set(began)) > 1 for began in rounds[3:5]), rounds
    here, there = outputs(tmp_path / "here"), outputs(tmp_path / "nodes")
    assert {"cluster/centroids.npy", "assign/00003.parquet", "export/000000-00000.tar"} <= here.keys()
    assert there == here
