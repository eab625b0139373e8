"""Campaign: does the memory of clustering, deduplication and selection stay where it is when there are more images?

`make campaign NAME=memory_flat` takes about ten minutes on two cores and 14 GB of disk; the result is memory_flat.md
beside this file. Features are planted (a mixture of as many directions as there are clusters, with noise), so nothing
is decoded or embedded; everything after `embed` is the shipped code, each stage in a process of its own whose peak
resident memory the kernel tells. Few clusters and iterations, since two cores are slow: they change the time, and the
memory by the size of the centroids only.
Exits with 3 when cluster's or select's peak at any size is more than a tenth above that at the smallest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from megavlm.data_curation.features import write_features
from megavlm.data_curation.fingerprint import task_fingerprints
from megavlm.data_curation.ledger import Line
from megavlm.data_curation.run import CurationRun
from megavlm.data_curation.stages.base import Outcome
from megavlm.data_curation.stages.filter import SCHEMA
from megavlm.platform.runs import RunFolder

SIZES = (100_000, 500_000, 2_000_000)
ROWS, WIDTH, CLUSTERS, ITERATIONS = 20_000, 768, 256, 3  # rows of a shard
BOUND, BOUNDED = 1.10, ("cluster", "select")
STAGES = ("cluster", "assign", "deduplicate", "select")
RESULT = Path(__file__).with_suffix(".md")
PACKAGES = ("numpy", "faiss-cpu", "pyarrow", "zarr")
# One engine at all sizes: `auto` would load torch for the larger ones, which is 200 MB of something else.
RECIPE: dict[str, Any] = {
    "ingest": {},
    "filter": {},
    "embed": {"embedder": {"name": "pixels"}},
    "cluster": {"clusters": CLUSTERS, "iterations": ITERATIONS, "train_on": SIZES[-1], "engine": "faiss"},
    "assign": {"engine": "faiss"},
    "deduplicate": {"hash_radius": None, "epsilon": 0.1, "keep": "hard"},
    "select": {"nearest": 300},
}
WORK = """
import json, pathlib, sys, time
from megavlm.data_curation.run import CurationRun
from megavlm.data_curation.work import work
started = time.process_time()
run = CurationRun.open(sys.argv[1])
for tasks in run.config.stages[sys.argv[2]].rounds(run):
    work(run, sys.argv[2], tasks)
# VmHWM: getrusage's maximum is inherited from the process that forked this one
status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
print(json.dumps({"peak_mib": int(status["VmHWM"].split()[0]) / 1024, "cpu_seconds": time.process_time() - started}))
"""


def plant(folder: Path, images: int) -> CurationRun:
    """A run that is done up to `embed`."""
    raw = folder / "raw"
    raw.mkdir(parents=True)
    for shard in range(images // ROWS):
        (raw / f"{shard:05d}.tar").touch()
    tree = {"name": "memory", "seed": 1, "curation": {"source": {"path": str(raw)}, "stages": RECIPE}}
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree, sort_keys=False))
    run = CurationRun.open(RunFolder.create(folder / "run", tree, {}, ["benchmarks/campaigns/memory_flat.py"]).root)
    run.make_plan()
    directions = np.random.default_rng(0).standard_normal((CLUSTERS, WIDTH), np.float32)
    for task, name in enumerate(run.plan.names):
        plant_shard(run, name, np.random.default_rng([1, task]), directions)
        for stage in ("ingest", "filter", "embed"):
            run.ledger.mark(stage, Line(task), task_fingerprints(run, stage, [task])[task], Outcome(ROWS, ROWS), 0.0)
    return run


def plant_shard(run: CurationRun, name: str, rng: np.random.Generator, directions: np.ndarray) -> None:
    """What filter and embed would have written."""
    features = directions[rng.integers(0, len(directions), ROWS)] + rng.standard_normal((ROWS, WIDTH), np.float32)
    write_features(run.folder.path("embed", f"{name}.zarr"), features)
    keys = [f"{name}{row:05d}" for row in range(ROWS)]
    digests = rng.integers(0, 256, (ROWS, 64), dtype=np.uint8)
    columns: dict[str, Any] = {"key": keys, "keep": [True] * ROWS} | dict.fromkeys(
        ("reason", "detail", "format"), [None] * ROWS
    )
    columns |= dict.fromkeys(("width", "height", "bytes", "pdq_quality"), [100] * ROWS) | {"contrast": [50.0] * ROWS}
    columns |= {"sha256": [row[:32].tobytes().hex() for row in digests], "pdq": [row[32:].tobytes() for row in digests]}
    run.write_sidecar("filter", name, pa.table(columns, schema=SCHEMA))
    none = pa.nulls(ROWS, pa.string())
    run.write_sidecar("embed", name, pa.table({"key": keys, "keep": [True] * ROWS, "reason": none}))


def measure(images: int) -> dict[str, dict[str, float]]:
    """Stage -> its process's peak resident memory and CPU-seconds."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        run, told = plant(Path(folder), images), {}
        for stage in STAGES:
            command = [sys.executable, "-c", WORK, str(run.folder.root), stage]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            told[stage] = json.loads(done.stdout.splitlines()[-1])
            print(images, stage, told[stage], flush=True)
        return told


def facts(seconds: float) -> list[str]:
    """What the figures belong to."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return [
        f"## {datetime.now(UTC):%Y-%m-%d}, commit {commit}",
        "",
        "- command: `make campaign NAME=memory_flat`",
        "- seed: 1",
        f"- machine: {os.cpu_count()} cores, no GPU; {os.environ.get('OMP_NUM_THREADS', 'all')} threads",
        f"- versions: {', '.join(f'{name} {version(name)}' for name in PACKAGES)}",
        f"- {WIDTH} dimensions in float16, {CLUSTERS} clusters, {ITERATIONS} iterations on all images, epsilon 0.1",
        f"- wall time: {seconds:.0f} s",
        f"- bound: {' and '.join(BOUNDED)} at most {BOUND:.2f} times their peak at {SIZES[0]:,} images",
        "",
    ]


def row(stage: str, told: dict[int, dict[str, dict[str, float]]]) -> str:
    """One line of the table."""
    peaks = [told[images][stage]["peak_mib"] for images in SIZES]
    cells = [
        f"{peak:.0f} MiB, {told[images][stage]['cpu_seconds']:.0f} s" for peak, images in zip(peaks, SIZES, strict=True)
    ]
    return f"| {stage} | {' | '.join(cells)} | {max(peaks) / peaks[0]:.2f} |"


def main() -> int:
    """Measure every size and write the table."""
    started = time.monotonic()
    told = {images: measure(images) for images in SIZES}
    head = ["stage: peak memory, CPU time", *(f"{images:,} images" for images in SIZES), "largest / first"]
    table = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(row(stage, told) for stage in STAGES)]
    words = [
        "",
        "A stage's memory is that of its units: 16,384 training rows, 65,536 rows of a group of shards or bucket of",
        "clusters, and the centroids. The features of the largest size are 3.1 GB in float16, 6.1 GB in float32.",
        "Deduplicate has no bound: it also holds one cluster in float32, and clusters grow here, their number being",
        "fixed.",
    ]
    lines = ["# Memory of the stages that see all images", "", *facts(time.monotonic() - started), *table, *words]
    RESULT.write_text("\n".join(lines) + "\n")
    peaks = {stage: [told[images][stage]["peak_mib"] for images in SIZES] for stage in BOUNDED}
    return 0 if all(max(of) <= BOUND * of[0] for of in peaks.values()) else 3


if __name__ == "__main__":
    sys.exit(main())
