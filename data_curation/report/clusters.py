"""Clusters: how large and how tight they are, and what the telling ones look like."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megavlm.platform.report import Report

from .mosaic import COLUMNS, TILE, show
from .pictures import Pictures
from .view import Name, View

PICTURES_PER_CLUSTER = 3 * COLUMNS
TELLING = 8  # images below which a mean cosine says little: such clusters are neither tightest nor loosest
RANKS_SHOWN = 200


@dataclasses.dataclass(frozen=True)
class Clusters:
    """`sizes` and `kept` int64 [clusters], `means` float64 [clusters]: mean cosine to the centroid, NaN when empty."""

    stage: str  # whose sidecars say so
    sizes: np.ndarray
    kept: np.ndarray
    means: np.ndarray


def add_clusters(view: View, pictures: Pictures, report: Report) -> None:
    """Sizes of all clusters, and mosaics of some."""
    if not view.has("assign"):
        return
    found = measured(view, "select" if view.has("select") else "assign")
    facts = view.notes("cluster")
    got = f"{int(found.sizes.sum()):,} images in {np.count_nonzero(found.sizes):,} of {len(found.sizes):,} clusters"
    told = [f"{got}, as {found.stage} got them."]
    if {"iterations_run", "trained_on"} <= facts.keys():
        told += [f"{facts['iterations_run']} iterations of K-means on {facts['trained_on']:,} images."]
    report.section("Clusters", " ".join([*told, view.scope(found.stage)]).strip())
    _draw_sizes(view, found, report)
    chosen = named(found)
    members = nearest(view, found.stage, list(chosen))
    images = pictures.images((name for names in members.values() for name in names), side=2 * TILE)
    for cluster, title in chosen.items():
        shown = [images[name] for name in members[cluster] if name in images]
        show(report, f"{title}: cluster {cluster}", shown, describe(found, cluster, len(shown)))
    pictures.tell(report, sum(map(len, members.values())), len(images))


def measured(view: View, stage: str) -> Clusters:
    """Counted shard by shard."""
    sizes = kept = sums = np.zeros(0)
    for _, table in view.tables(stage, ["keep", "cluster", "cosine"]):
        cluster, keep = table["cluster"].to_numpy(), table["keep"].to_numpy(zero_copy_only=False)
        sizes = _sum(sizes, np.bincount(cluster))
        kept = _sum(kept, np.bincount(cluster[keep.astype(bool)]))
        sums = _sum(sums, np.bincount(cluster, weights=table["cosine"].to_numpy()))
    count = max(int(view.notes("cluster").get("clusters", 0)), len(sizes))
    sizes, kept, sums = (_sum(part, np.zeros(count)) for part in (sizes, kept, sums))
    means = np.divide(sums, sizes, out=np.full(count, np.nan), where=sizes > 0)
    return Clusters(stage, sizes.astype(np.int64), kept.astype(np.int64), means)


def _sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The sum of two arrays of which one may end earlier."""
    total = np.zeros(max(len(a), len(b)))
    total[: len(a)] += a
    total[: len(b)] += b
    return total


def named(found: Clusters) -> dict[int, str]:
    """Cluster -> what is telling about it; one that is several things is shown once."""
    there = np.flatnonzero(found.sizes)
    by_size = there[np.argsort(-found.sizes[there], kind="stable")]
    full = there[found.sizes[there] >= TELLING]
    by_mean = full[np.argsort(-found.means[full], kind="stable")]
    picks = [("largest", by_size[0]), *(("second largest", place) for place in by_size[1:2])]
    picks += [("median in size", by_size[len(by_size) // 2]), ("smallest", by_size[-1])]
    picks += [("tightest", by_mean[0]), ("loosest", by_mean[-1])] if len(by_mean) else []
    titles: dict[int, list[str]] = {}
    for title, cluster in picks:
        titles.setdefault(int(cluster), []).append(title)
    return {cluster: ", ".join(names).capitalize() for cluster, names in titles.items()}


def describe(found: Clusters, cluster: int, shown: int) -> str:
    """A mosaic's caption."""
    size, kept = int(found.sizes[cluster]), int(found.kept[cluster])
    stayed = f", {kept:,} selected" if found.stage == "select" else ""
    told = f"{size:,} images{stayed}; mean cosine to the centroid {found.means[cluster]:.3f}"
    return f"{told}. Shown: the {shown} nearest, nearest first." if shown else f"{told}. No picture can be had."


def nearest(view: View, stage: str, clusters: Sequence[int]) -> dict[int, list[Name]]:
    """Cluster -> the PICTURES_PER_CLUSTER images nearest to its centroid, nearest first."""
    best: dict[int, pa.Table] = {}
    for shard, table in view.tables(stage, ["key", "cluster", "cosine"]):
        for cluster in clusters:
            part = table.filter(pc.equal(table["cluster"], cluster)).select(["key", "cosine"])
            part = part.append_column("shard", pa.repeat(shard, len(part)))
            whole = pa.concat_tables([best[cluster], part]) if cluster in best else part
            best[cluster] = whole.sort_by([("cosine", "descending")])[:PICTURES_PER_CLUSTER]
    return {cluster: _names(best[cluster]) for cluster in clusters}


def _names(table: pa.Table) -> list[Name]:
    return list(zip(table["shard"].to_pylist(), table["key"].to_pylist(), strict=True))


def _draw_sizes(view: View, found: Clusters, report: Report) -> None:
    """Sizes by rank on two logarithmic axes, where a long tail is a straight line."""
    before = f"received by {found.stage}" if found.stage == "select" else "assigned"
    series = {before: _ranked(found.sizes)} | ({"selected": _ranked(found.kept)} if found.stage == "select" else {})
    wanted = getattr(view.stages[found.stage], "nearest", None)
    marks: Mapping[str, float] = {f"select.nearest: {wanted}": float(wanted)} if wanted else {}
    title = "Images in each cluster, the largest cluster first"
    report.line_chart(title, series, "rank of the cluster", "images", log_y=True, log_x=True, marks=marks)


def _ranked(sizes: np.ndarray) -> list[tuple[float, float]]:
    """(rank, size), largest first, empty clusters left out; at most RANKS_SHOWN, evenly on a logarithmic axis."""
    falling = np.sort(sizes[sizes > 0])[::-1]
    if not len(falling):
        return []
    ranks = np.unique(np.rint(np.geomspace(1, len(falling), RANKS_SHOWN)).astype(int))
    return [(float(rank), float(falling[rank - 1])) for rank in ranks]
