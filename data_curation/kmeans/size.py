"""How much a clustering has to do, and which smaller one is to some of the images what it is to all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..stages.demand import Demand, Size, Work
from .levels import SETTLING
from .rows import ROWS_PER_PIECE

if TYPE_CHECKING:
    from ..stages.cluster import Cluster

FEW = 4  # clusters that even the smallest pilot has


def demand(stage: Cluster, size: Size) -> Demand:
    """Of one level: the coarser ones are a small share of it. `notes` tell how many iterations there were."""
    trained = min(size.images, stage.train_on or stage.clusters * stage.max_points_per_centroid)
    iterations = passes = int(size.notes.get("iterations_run", stage.iterations))
    held = min(trained, ROWS_PER_PIECE) + stage.clusters  # float32, and once more float64 while they are added up
    few = min(trained, stage.clusters * stage.closest) if stage.levels else 0
    if stage.levels:  # the start is drawn by one comparison of each row with all centroids
        passes += 1 + stage.resampling + (SETTLING if stage.resampling else 0)
    again = few * stage.resampling * (1 + stage.iterations)
    work = {
        "images": Work(trained * (1 + passes) + again, stage.parts),
        "comparisons": Work((trained * passes + again) * stage.clusters, stage.parts),
    }
    rounds = 1 if stage.parts == 1 else 3 + int(stage.center) + iterations
    return Demand(work, rows=0, stated=12 * size.dimension * (held + few), rounds=rounds)


def piloted(stage: Cluster, share: float) -> dict[str, Any]:
    """As many images in each cluster as in the full run, so that clusters have pairs and neighbours as there."""
    counts = scaled([stage.clusters, *(level.clusters for level in stage.levels)], share)
    options: dict[str, Any] = {"clusters": counts[0]}
    for number, count in enumerate(counts[1:]):
        options[f"levels.{number}.clusters"] = count
    if stage.train_on is not None:
        options["train_on"] = max(counts[0], round(stage.train_on * share))
    return options


def scaled(counts: Sequence[int], share: float) -> list[int]:
    """Falling numbers of clusters times `share`, still falling, the last at least 1 and the first at least FEW."""
    out: list[int] = []
    for number, count in enumerate(counts):
        least = max(FEW, len(counts)) if number == 0 else len(counts) - number
        most = count if number == 0 else min(count, out[-1] - 1)
        out.append(min(most, max(least, round(count * share))))
    return out
