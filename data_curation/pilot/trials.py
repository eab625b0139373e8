"""Work that a pilot does too little of to be timed by it: done by itself, at the size of the full run.

`trials RUN STAGE SIZE` (SIZE as JSON) prints {kind of work: seconds for one operation} and is what a pilot starts, so
that a worker's number of threads counts and no library stays in the pilot's memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from megavlm.platform.errors import MegaVLMError
from megavlm.platform.processes import environment

from ..run import CurationRun
from ..stages.base import Stage
from ..stages.demand import Size
from .scale import IN_PROCESS, workers

SECONDS = 0.5  # that a trial lasts at least
OPERATIONS = 2e10  # products of two values, about, in one go of a trial
Trial = Callable[[Any, Size, int], tuple[Callable[[], object], float]]  # stage, size, d -> a go, operations in it


def _unit(rows: int, dimension: int) -> np.ndarray:
    from ..features import unit

    return unit(np.random.default_rng(0).standard_normal((rows, dimension), dtype=np.float32))


def comparisons(stage: Any, size: Size, dimension: int) -> tuple[Callable[[], object], float]:
    """Rows with the full run's centroids, by the engine that it will have."""
    from ..kmeans.nearest import searcher

    search = searcher(_unit(size.clusters, dimension), stage.engine, size.images)
    rows = _unit(int(np.clip(OPERATIONS / size.clusters / dimension, 64, 4096)), dimension)
    return lambda: search(rows), float(len(rows) * size.clusters)


def hash_pairs(stage: Any, size: Size, dimension: int) -> tuple[Callable[[], object], float]:
    """Hashes with each other, all or those of a cluster."""
    from ..duplicates import near_earlier

    mean = size.images / size.clusters if stage.hash_scope == "cluster" else size.images
    count = int(np.clip(mean, 16, 16_384))
    hashes = np.random.default_rng(0).integers(0, 256, (count, 32), dtype=np.uint8)
    usable = np.ones(count, bool)
    return lambda: near_earlier(hashes, usable, stage.hash_radius), count * count / 2


def feature_pairs(stage: Any, size: Size, dimension: int) -> tuple[Callable[[], object], float]:
    """A cluster of the mean size by the stage's rule."""
    from ..semdedup import RULES

    points = _unit(int(np.clip(size.images / size.clusters, 16, 4096)), dimension)
    epsilon = stage.trial_epsilons[-1] if stage.epsilon is None else stage.epsilon
    return lambda: RULES[stage.rule](points, epsilon, None), len(points) ** 2 / 2


TRIALS: Mapping[str, Trial] = {
    "comparisons": comparisons,
    "hash_pairs": hash_pairs,
    "feature_pairs": feature_pairs,
}


def tried(run: CurationRun, stage: Stage, size: Size) -> dict[str, float]:
    """Seconds for one operation of each kind of work that has a trial, as many side by side as there will be."""
    work = {kind: of for kind, of in stage.demand(size).work.items() if kind in TRIALS}
    if not work:
        return {}
    count = min(workers(run.config), max(of.tasks for of in work.values()))
    own = None if run.config.executor.name == IN_PROCESS else environment(workers(run.config))
    asked = json.dumps({"images": size.images, "shards": size.shards, "clusters": size.clusters})
    command = [sys.executable, "-m", "megavlm.data_curation.pilot.trials", str(run.folder.root), stage.name, asked]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, env=own) for _ in range(count)]
    told = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise MegaVLMError(f"stage '{stage.name}' could not be tried at the full size; the reason stands above")
    found = [json.loads(text) for text in told]
    return {kind: float(np.mean([one[kind] for one in found])) for kind in work}


def _timed(go: Callable[[], object]) -> float:
    """Seconds of one go, the first one, which loads and compiles, left out."""
    go()
    started, goes = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < SECONDS:
        go()
        goes += 1
    return passed / goes


def main(root: str, name: str, asked: str) -> dict[str, float]:
    """Time every kind of work of a stage that has a trial."""
    run = CurationRun.open(root)
    stage, size = run.config.stages[name], Size(**json.loads(asked))
    dimension = np.load(run.folder.path("cluster", "centroids.npy"), mmap_mode="r", allow_pickle=False).shape[1]
    out = {}
    for kind in stage.demand(size).work.keys() & TRIALS.keys():
        go, operations = TRIALS[kind](stage, size, dimension)
        out[kind] = _timed(go) / operations
    return out


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
