"""A study that searches, its trainings as job arrays on a real Slurm: round after round, each training once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.slurm, pytest.mark.multiprocess, pytest.mark.timeout(400)]
# One stage, of few steps, judged by its loss alone: nothing is trained before it, and nothing is answered after it.
SHORT = [
    "stages.language=null",
    "stages.gate=null",
    "stages.sft={after: [], blind: [], steps: 2}",
    "stages.sft.evaluate.text=null",
    "stages.sft.evaluate.vqa=null",
    "stages.sft.parallel.tp=1",
]


def begun(folder: Path) -> list[tuple[str, str]]:
    """(array's name, node) of every command that a worker began, as the arrays' own files tell."""
    lines = [(path, json.loads(line)) for path in folder.glob("*-arrays/*/results/*") for line in path.open()]
    return [(path.parents[2].name, line["node"]) for path, line in lines if "begun" in line]


def test_a_search_runs_as_job_arrays(cluster, profile, recipe, tmp_path):
    search = {"over": "stages.sft.train", "candidates": ["connector", "decoder"], "score": "loss", "better": "lower"}
    scores = {"loss": {"stage": "sft", "metric": "loss", "over": 1}}
    executor = {"name": "slurm", "workers": 2, "cluster": str(profile())}
    tree = {"question": "?", "recipe": str(recipe), "overrides": SHORT, "search": search, "scores": scores}
    path, out = tmp_path / "tiny.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(tree | {"equal": ["steps"], "executor": executor}))
    words = [sys.executable, "-m", "megavlm.platform.cli", "study", "run", str(path), "--out", str(out), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=380)
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout)["search"]
    assert [len(one["tried"]) for one in found["rounds"]] == [2, 1] and found["ended"] != "unscored"
    ran = begun(out / "attempts/01/logs")
    assert sorted(name for name, _ in ran) == ["tiny-1-0-arrays"] * 2 + ["tiny-2-0-arrays"]
    assert {node for _, node in ran} <= set(cluster.nodes)
