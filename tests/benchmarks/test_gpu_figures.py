"""benchmarks/gpu/measure.py at tiny sizes on the CPU: the same code that a GPU runs."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("kernels", "layers", "attention", "speed", "losses")


def measure(*arguments: object) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", ROOT / "benchmarks/gpu/measure.py", *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("figures")
    done = measure(*PARTS, "--dry-run", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_every_part_has_its_figures(folder: Path) -> None:
    figures = json.loads((folder / "figures.json").read_text())
    assert figures["machine"]["device"] == "cpu" and figures["machine"]["dry_run"]
    found = {part: figures[part]["found"] for part in PARTS}
    known = {"tile_normalise", "merge_tokens", "nearest_centroids", "deformable_attention"}
    assert {row["kernel"] for row in found["kernels"]} == known
    assert all(row["floor"] > 0 and set(row["seconds"]) == {"torch", "compile"} for row in found["kernels"])
    assert [row["arithmetic"] for row in found["layers"]] == ["torch bf16"]
    assert [row["segments"] for row in found["attention"]] == [1, 4]
    assert all(row["tokens_per_second"] > 0 and "failed" not in row for row in found["speed"])
    curves = {row["precision"]: row["losses"] for row in found["losses"]}
    assert curves["bf16"][0] == pytest.approx(curves["fp32"][0], rel=1e-2)
    assert all(loss < math.log(256) + 1 for loss in curves["fp32"]) and curves["fp32"][-1] < curves["fp32"][0]


def test_the_tables_say_the_same(folder: Path) -> None:
    text = (folder / "figures.md").read_text()
    assert all(f"\n## {part}\n" in text for part in PARTS)
    figures = json.loads((folder / "figures.json").read_text())
    assert f"{figures['layers']['found'][0]['seconds']:.4g}" in text


def test_parts_that_are_done_are_not_measured_again(folder: Path, tmp_path: Path) -> None:
    done = measure("kernels", "--dry-run", "--before", folder / "figures.json", "--out", tmp_path)
    assert done.returncode == 0 and "kernels: done" not in done.stdout
    assert (tmp_path / "figures.json").read_text() == (folder / "figures.json").read_text()


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    done = measure("kernel", "--out", tmp_path)
    assert done.returncode == 2 and "no part kernel; there are tests, kernels" in done.stderr
