"""Campaign: 20,000 images with planted copies, curated whole. Is the result right, and was the pilot's forecast?

`make campaign NAME=curation_20k` takes about a quarter of an hour on two cores that do nothing else, and 3 GB below
$MEGAVLM_RUNS (or ./runs); the result is curation_20k.md beside this file. It writes a crawl, asks `curate pilot` what
curating it would take, curates it, and judges the run by brute force; then it plants pairs of known cosine among
100,000 vectors and has SemDeDup find them. A crawl that is there already is used again.
Exits with 3 when one of the figures is out of its bound.

MEGAVLM_CAMPAIGN_SIZE=2000 tries it at that size: everything as above, but the result is printed and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from at_size import curated, planted
from at_size.crawl import Crawl, write_crawl
from at_size.likeness import likeness
from at_size.measured import Measured, disk, verb

from megavlm.platform.runs import default_runs_root

FULL = 20_000
SIZE = int(os.environ.get("MEGAVLM_CAMPAIGN_SIZE", FULL))
SEED, SIDES, PROCESSES = 43, (100, 400), 2
CRAWL = Crawl(SIZE, SEED, SIDES, per_shard=max(50, SIZE // 40), bad_of_each=max(1, SIZE // 2000))
CLUSTERS, NEAREST = 50, max(1, 300 * SIZE // FULL)  # there are more icons than a cluster may keep
PILOT = max(200, SIZE // 10)  # samples
VECTORS, WIDTH = 5 * SIZE, 768
BOUND, FORECAST = 0.99, 0.20
RESULT = Path(__file__).with_suffix(".md")
PACKAGES = ("torch", "timm", "faiss-cpu", "pdqhash", "numpy", "pillow", "pyarrow", "zarr")
EMBEDDER = {"image_size": 84, "pooling": "grid"}
EXECUTOR = {"name": "local", "workers": PROCESSES, "tasks_per_command": 4}


class Figure(NamedTuple):
    """One line of the result; `holds` is None where there is no bound."""

    name: str
    value: str
    bound: str = ""
    holds: bool | None = None


def folder() -> Path:
    """Where everything lies: named after what decides the crawl, so that no other one is used again."""
    sources = sorted(Path(__file__).with_name("at_size").glob("*.py"))
    decisive = hashlib.sha256(repr(CRAWL).encode() + b"".join(path.read_bytes() for path in sources))
    return default_runs_root() / "campaigns" / f"curation-{SIZE}-{decisive.hexdigest()[:12]}"


def share(name: str, value: float) -> Figure:
    """A recall or a precision."""
    return Figure(name, f"{value:.4f}", f"at least {BOUND}", value >= BOUND)


def forecast_figures(pilot: Measured, run: Measured, size: int, images: int) -> list[Figure]:
    """What the pilot said beside what it took."""
    forecast = pilot.told["forecast"]
    took = {"seconds": run.seconds, "disk_bytes": size, "memory_bytes": run.largest, "images_out": images}
    took["memory_bytes_together"] = run.together
    figures = [Figure("seconds of the pilot itself", f"{pilot.seconds:.0f}")]
    for name, truth in took.items():
        off = forecast[name] / truth - 1
        value = f"{forecast[name]:,.0f} forecast, {truth:,.0f} measured, {100 * off:+.1f} %"
        figures.append(Figure(f"pilot: {name}", value, f"within {100 * FORECAST:.0f} %", abs(off) <= FORECAST))
    return figures


def images(work: Path) -> list[Figure]:
    """Crawl, pilot, run, and what there is to say of them."""
    raw, started = work / "raw", time.monotonic()
    truth = write_crawl(raw, CRAWL, PROCESSES)
    figures = [Figure("seconds to write the crawl", f"{time.monotonic() - started:.0f}")]
    recipe, run = work / "recipe.yaml", work / "run"
    recipe.write_text(yaml.safe_dump(curated.recipe(raw, CLUSTERS, NEAREST, EMBEDDER, EXECUTOR), sort_keys=False))
    pilot = verb(["curate", "pilot", str(recipe), "--samples", str(PILOT), "--out", str(work / "pilot")])
    took = verb(["curate", "run", str(recipe), "--out", str(run)])
    verb(["report", str(run)])
    if "random weights" not in (run / "report.html").read_text():
        figures.append(Figure("the report says that the weights are random", "no", "yes", False))
    figures += forecast_figures(pilot, took, disk(run), len(curated.exported(run)))
    return figures + judged(raw, run, truth)


def judged(raw: Path, run: Path, truth: dict[str, Any]) -> list[Figure]:
    """The run held against the truth."""
    faults = curated.funnel_faults(run, truth)
    figures = [Figure("faults of the funnel", "; ".join(faults[:3]) or "none", "none", not faults)]
    scores = curated.duplicate_scores(run, truth)
    icons = int(scores.pop("icons kept"))
    figures += [share(name, value) for name, value in scores.items()]
    wrong, told = curated.selection_faults(run, truth, NEAREST)
    figures += [
        Figure("clusters that do not keep their nearest", "; ".join(wrong[:3]) or "none", "none", not wrong),
        *(Figure(name, f"{value:,}") for name, value in told.items() if not name.startswith("icons")),
        Figure(
            f"icons among the nearest {NEAREST} of their cluster, were no duplicates removed", str(told["icons before"])
        ),
        Figure(f"icons kept, of {len(truth['icons'])}", str(icons), "1", icons == 1),
    ]
    alike = likeness(raw, run, truth)
    return [
        *figures,
        Figure("originals", f"{alike['originals']:,.0f}"),
        Figure("bits between the two nearest originals' hashes", f"{alike['least bits']:.0f}"),
        Figure("correlation of the two most similar originals", f"{alike['greatest correlation']:.3f}"),
        Figure("that 99 of 100 copies reach with their originals", f"{alike['correlation of copies']:.3f}"),
        Figure(
            "pairs of originals as near as copies in both", str(both := alike["pairs alike in both"]), "0", both == 0
        ),
    ]


def cosines(work: Path) -> list[Figure]:
    """SemDeDup by both rules on planted pairs."""
    figures = []
    vectors, pairs = planted.Pairs(VECTORS, WIDTH, SEED, centres=1000).vectors()
    per_shard = max(1000, VECTORS // 20)
    names = [key for start in range(0, VECTORS, per_shard)
             for key in planted.keys_of(start // per_shard, min(per_shard, VECTORS - start))]  # fmt: skip
    for rule in ("code", "paper"):
        place = work / f"planted-{rule}"
        shutil.rmtree(place, ignore_errors=True)
        recipe = planted.plant(place, planted.recipe(place, 100, {"rule": rule}, EXECUTOR), vectors, per_shard)
        verb(["curate", "run", str(recipe), "--out", str(place / "run")])
        scores = planted.scores(
            curated.rows(place / "run", "deduplicate", ["key", "keep", "duplicate_of"]), names, pairs
        )
        figures += [share(f"SemDeDup, rule {rule}: {name}", scores[name]) for name in ("recall", "precision")]
        shutil.rmtree(place)
    return figures


def page(figures: list[Figure], seconds: float) -> list[str]:
    """The result."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return [
        f"# {SIZE:,} images curated whole",
        "",
        f"## {datetime.now(UTC):%Y-%m-%d}, commit {commit}",
        "",
        "- command: `make campaign NAME=curation_20k`",
        f"- seed: {SEED}; the hash's radius of {curated.HASH_RADIUS} bits was chosen on others",
        "  ([hash_radius.md](hash_radius.md))",
        f"- machine: {os.cpu_count()} cores, no GPU; {PROCESSES} workers",
        f"- versions: {', '.join(f'{name} {version(name)}' for name in PACKAGES)}",
        f"- {SIZE:,} images of {SIDES[0]} to {SIDES[1]} px, 2 % of them copies of each kind and 2 % one icon",
        f"- EVA-02 tiny at {EMBEDDER['image_size']} px, random weights; {CLUSTERS} clusters, {NEAREST} of each at most",
        f"- SemDeDup: {VECTORS:,} vectors of {WIDTH} in 100 clusters, {VECTORS // 20:,} pairs just within epsilon 0.05",
        "  and as many just beyond, by 0.0005 to 0.02",
        f"- wall time: {seconds:.0f} s",
        "",
        "| figure | value | bound | holds |",
        "|---|---|---|---|",
        *(f"| {name} | {value} | {bound} | {WORDS[holds]} |" for name, value, bound, holds in figures),
        "",
        "Everything but the forecast is computed from the run's files by numpy, not by the stages' code. Recall counts",
        "planted pairs of which one image was dropped for the other; precision counts dropped images whose stated",
        "duplicate shows the same original. The weights are random, so the clusters mean nothing; that each keeps its",
        "nearest does not depend on it. A pair on two sides of a boundary between clusters is what SemDeDup loses.",
    ]


WORDS = {None: "", True: "yes", False: "**no**"}


def main() -> int:
    """Do everything and write the result; the files stay only where something does not hold."""
    started, work, figures = time.monotonic(), folder(), list[Figure]()
    parts: tuple[Callable[[Path], list[Figure]], ...] = (images, cosines)
    for name in ("run", "pilot", "pilot-quarter"):  # of an attempt that was broken off: its time would count as none
        shutil.rmtree(work / name, ignore_errors=True)
    for part in parts:
        before = time.monotonic()
        figures += part(work)
        figures.append(Figure(f"seconds of the part '{part.__name__}'", f"{time.monotonic() - before:.0f}"))
    lines = page(figures, time.monotonic() - started)
    print("\n".join(lines))
    if SIZE == FULL:
        RESULT.write_text("\n".join(lines) + "\n")
    if any(figure.holds is False for figure in figures):
        return 3
    shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
