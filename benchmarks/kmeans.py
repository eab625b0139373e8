"""K-means against raw FAISS: CPU-seconds per iteration from the same start, in one run, and the objective reached.

`OMP_NUM_THREADS=1 python benchmarks/kmeans.py` takes some minutes and writes kmeans.md beside this file. Per iteration
is the difference of two runs of different length, so that what is done once counts for nobody.
Exits with 3 when an engine that `auto` takes at this size is slower than 0.95 of FAISS, or ends at a worse objective.
"""

from __future__ import annotations

import datetime
import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megavlm.data_curation.features import unit
from megavlm.data_curation.kmeans.lloyd import lloyd
from megavlm.data_curation.kmeans.nearest import SMALL
from megavlm.data_curation.kmeans.rows import ROWS_PER_PIECE, InMemory, OnDisk, Rows, on_grid
from megavlm.data_curation.kmeans.start import random_rows

WIDTH, SHORT, LONG, REPEATS, BOUND = 768, 1, 3, 2, 0.95
CASES = ((65_536, 1_000), (65_536, 2_000))  # rows, clusters
RESULT = Path(__file__).with_suffix(".md")


class Run(NamedTuple):
    """CPU-seconds per iteration, and the mean cosine in the last one."""

    seconds: float
    cosine: float


def faiss_alone(points: np.ndarray, start: np.ndarray) -> Callable[[int], float]:
    """faiss.Kmeans, spherical, no subsampling, no early stop."""
    import faiss

    def fit(iterations: int) -> float:
        options = {"max_points_per_centroid": len(points), "min_points_per_centroid": 1}
        model = faiss.Kmeans(points.shape[1], len(start), niter=iterations, spherical=True, **options)
        model.cp.early_stop_threshold = -1.0
        model.train(points, init_centroids=start)
        return float(model.obj[-1]) / len(points)

    return fit


def ours(rows: Rows, start: np.ndarray, engine: str) -> Callable[[int], float]:
    """This project's loop with one of its engines."""
    from megavlm.data_curation.kmeans.lloyd import Fit

    return lambda iterations: lloyd(rows, Fit(start), iterations, -1.0, engine).objectives[-1]  # type: ignore[arg-type]


def timed(fit: Callable[[int], float]) -> Run:
    """The best of a few, since the machine does other things too."""
    seconds, cosine = [], 0.0
    for _ in range(REPEATS):
        spent = []
        for iterations in (SHORT, LONG):
            before = time.process_time()
            cosine = fit(iterations)
            spent.append(time.process_time() - before)
        seconds.append((spent[1] - spent[0]) / (LONG - SHORT))
    return Run(min(seconds), cosine)


def data(count: int) -> np.ndarray:
    """Unit rows: 500 directions and noise."""
    rng = np.random.default_rng(0)
    kinds = rng.standard_normal((500, WIDTH), np.float32)
    return on_grid(unit(kinds[rng.integers(0, 500, count)] + rng.standard_normal((count, WIDTH), np.float32)))


def case(count: int, clusters: int) -> dict[str, Run]:
    """Everybody from the same rows and the same first centroids."""
    points = data(count).astype(np.float32)
    start = random_rows(InMemory(points), clusters, 1).centroids
    with tempfile.TemporaryDirectory() as folder:
        for piece in range(-(-count // ROWS_PER_PIECE)):
            np.save(Path(folder) / f"{piece:06d}.npy", points[piece * ROWS_PER_PIECE : (piece + 1) * ROWS_PER_PIECE])
        rows = OnDisk(Path(folder), count)
        told = {"raw FAISS": timed(faiss_alone(points, start))}
        for engine in ("faiss", "kernel"):
            told[f"cluster, engine {engine}"] = timed(ours(rows, start, engine))
    return told


def main() -> int:
    """Measure, write the table, judge."""
    lines, good = [], True
    for count, clusters in CASES:
        told = case(count, clusters)
        raw = told["raw FAISS"]
        taken = f"cluster, engine {'kernel' if count * clusters >= SMALL else 'faiss'}"
        good &= raw.seconds / told[taken].seconds >= BOUND and told[taken].cosine >= raw.cosine - 1e-3
        for name, run in told.items():
            mark = " (what `auto` takes)" if name == taken else ""
            figures = f"{run.seconds:.2f} | {raw.seconds / run.seconds:.2f} | {run.cosine:.4f}"
            lines.append(f"| {count:,} x {WIDTH}, {clusters:,} clusters | {name}{mark} | {figures} |")
            print(lines[-1], flush=True)
    packages = ", ".join(f"{name} {version(name)}" for name in ("faiss-cpu", "torch", "numpy", "scipy"))
    command = f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', os.cpu_count())} python benchmarks/kmeans.py"
    head = [
        "# K-means against FAISS",
        "",
        f"Command: `{command}`; {datetime.date.today()}; {packages}; CPU.",
        "",
        "same centroids and run the same iterations. The ratio is FAISS's CPU-seconds over ours: more is faster.",
        "same centroids and run the same iterations. The ratio is FAISS's CPU-seconds over ours: above 1 is faster.",
        "",
        "| rows | who | CPU-seconds per iteration | ratio | mean cosine |",
        "|---|---|---|---|---|",
    ]
    RESULT.write_text("\n".join([*head, *lines]) + "\n")
    return 0 if good else 3


if __name__ == "__main__":
    sys.exit(main())
