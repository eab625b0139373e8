"""Duplicates: pairs side by side with what speaks for them, nearest to the limits first, and the largest groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from megavlm.platform.report import Case, Histogram, Report

from ..distributions import Histogram as Bins
from ..distributions import coarser, linear
from .facts import facts, size_of
from .measures import numbers
from .mosaic import COLUMNS, TILE, show
from .pictures import Pictures
from .view import Name, View, spread

ROWS_READ = 200_000  # pairs in memory; a run may have found tens of millions
PAIRS_NEAR, PAIRS_SPREAD = 4, 3  # shown of each combination of methods: nearest to the limit, and over the rest
GROUPS_SHOWN = 3
SIZES = ("width", "height", "bytes")
Pair = Mapping[str, Any]


def add_duplicates(view: View, pictures: Pictures, report: Report) -> None:
    """Counts, distances, pairs and groups."""
    path = view.run.folder.path("deduplicate", "pairs.parquet")
    if not view.has("deduplicate") or not path.exists():
        return
    pairs, total = read_pairs(path)
    options = {name: value for name, value in view.stages["deduplicate"].model_dump().items() if value is not None}
    if "wanted_fraction" in options:  # the epsilon that the trials led to
        options |= {name: value for name, value in view.notes("deduplicate").items() if name == "epsilon"}
    else:
        del options["trial_epsilons"]
    asked = ", ".join(f"{name} {value}" for name, value in options.items())
    read = f" Shown from {len(pairs):,} of them, evenly spread." if len(pairs) < total else ""
    intro = f"{total:,} pairs; found with {asked}. Of each chain of duplicates one image stays.{read}"
    report.section("Duplicates", intro)
    methods = pc.value_counts(pairs["found_by"]).to_pylist()
    bars = {row["values"].replace("+", " + "): row["counts"] for row in methods}
    report.bar_chart("Pairs by the methods that found them", dict(sorted(bars.items())), "pairs")
    report.panels("How alike the pairs are", distances(pairs, options))
    shown = telling(pairs)
    names = [name for pair in shown for name in ends(pair)]
    found = pictures.encoded(names)
    sizes = facts(view, "filter", names, SIZES)
    report.cases("Pairs, weakest evidence first: kept | dropped", [_case(p, found, sizes, options) for p in shown], 128)
    pictures.tell(report, len(set(names)), len(found))
    _add_groups(pairs, pictures, report)


def read_pairs(path: Any) -> tuple[pa.Table, int]:
    """At most ROWS_READ pairs from row groups at even distances, and how many there are."""
    with pq.ParquetFile(path) as file:
        total, groups = file.metadata.num_rows, file.metadata.num_row_groups
        wanted = spread(range(groups), max(1, groups * ROWS_READ // max(total, 1)))
        return file.read_row_groups(wanted)[:ROWS_READ] if groups else file.read(), total


def distances(pairs: pa.Table, options: Mapping[str, Any]) -> list[Histogram]:
    """Bits and cosines of the pairs, with the limits that were set."""
    confirm, epsilon = options.get("confirm_radius"), options.get("epsilon")
    radii = {f"hash_radius {options['hash_radius']}": options["hash_radius"]} if "hash_radius" in options else {}
    radii |= {f"confirm_radius {confirm}": confirm} if confirm is not None else {}
    least = {f"1 - epsilon {1 - epsilon:g}": 1 - epsilon} if epsilon is not None else {}
    wanted = [
        ("hash_distance", "Differing bits of the hashes (PDQ)", "bits of 256", linear(-0.5, 256.5, 257), radii),
        ("cosine", "Cosine of the features", "cosine", linear(-1, 1, 800), least),
    ]
    panels = []
    for column, title, unit, edges, marks in wanted:
        bins = Bins(edges)
        bins.add(numbers(pairs[column]))
        if bins.total:
            shown, counts = coarser(edges, bins.counts[None], 60)
            note = f"Known of {bins.total:,} of {len(pairs):,} pairs; median {bins.quantile(0.5):.4g}."
            series = {"pairs": counts[0].tolist()}
            panels.append(Histogram(title, shown.tolist(), series, unit, marks, note=note, y_label="pairs"))
    return panels


def weakness(pairs: pa.Table) -> np.ndarray:
    """What speaks against each pair, float64 [n]: bits that differ, or where no hash was compared the lacking cosine.

    Pairs with equal bytes have none.
    """
    bits, cosine = numbers(pairs["hash_distance"]), numbers(pairs["cosine"])
    against = np.where(np.isnan(bits), 256 * (1 - np.nan_to_num(cosine, nan=1.0)), bits)
    exact = pc.starts_with(pairs["found_by"], "exact").to_numpy(zero_copy_only=False)
    return np.where(exact, 0.0, against)


def telling(pairs: pa.Table) -> list[Pair]:
    """Of every combination of methods the weakest pairs, where errors are, then some at even distances."""
    against, methods = weakness(pairs), np.array(pairs["found_by"].to_pylist(), dtype=object)
    shown: list[int] = []
    for method in sorted(set(methods), key=lambda name: (name.count("+"), name)):
        rows = np.flatnonzero(methods == method)
        rows = rows[np.argsort(-against[rows], kind="stable")]
        shown += rows[:PAIRS_NEAR].tolist() + spread(rows[PAIRS_NEAR:].tolist(), PAIRS_SPREAD)
    return [pairs.slice(row, 1).to_pylist()[0] for row in shown]


def ends(pair: Pair) -> tuple[Name, Name]:
    """The image that stays and the one that goes; of two that both go, the first one first."""
    a, b = (pair["shard_a"], pair["key_a"]), (pair["shard_b"], pair["key_b"])
    return (b, a) if pair["dropped_a"] and not pair["dropped_b"] else (a, b)


def why(pair: Pair, options: Mapping[str, Any]) -> dict[str, str]:
    """The evidence of each method that found the pair, with its limit."""
    bits, told = pair["hash_distance"], {"exact": "equal bytes"}
    if bits is not None:
        told["hash"] = f"{bits} of 256 bits differ (limit {options.get('hash_radius')})"
    if pair["cosine"] is not None:
        limit = f"limit {1 - options['epsilon']:g}" if "epsilon" in options else "limit from wanted_fraction"
        told["features"] = f"cosine {pair['cosine']:.4f} ({limit})"
        if bits is not None and "confirm_radius" in options:
            told["features"] += f" and {bits} bits (limit {options['confirm_radius']})"
    return {method: told.get(method, "") for method in pair["found_by"].split("+")}


def _case(
    pair: Pair, found: Mapping[Name, bytes], sizes: Mapping[Name, dict[str, Any]], options: Mapping[str, Any]
) -> Case:
    fates = ("dropped, for another", "dropped") if pair["dropped_a"] and pair["dropped_b"] else ("kept", "dropped")
    shown = []
    for name, fate in zip(ends(pair), fates, strict=True):
        told = ", ".join(filter(None, [f"{fate}: {name[1]}", size_of(sizes.get(name))]))
        shown.append((found.get(name, b""), told))
    return Case(shown, list(why(pair, options).items()))


def _add_groups(pairs: pa.Table, pictures: Pictures, report: Report) -> None:
    """The images of which most copies were dropped, each before its copies."""
    groups = largest_groups(pairs)
    images = pictures.images((name for kept, copies in groups for name in [kept, *copies]), side=2 * TILE)
    for kept, copies in groups:
        shown = [images[name] for name in [kept, *copies][: 2 * COLUMNS] if name in images]
        text = f"First the image that stays, {kept[1]}, then its copies; shown are {len(shown)} of {len(copies) + 1}."
        title = f"{len(copies):,} copies dropped for one image"
        show(report, title, shown, text)


def largest_groups(pairs: pa.Table) -> list[tuple[Name, list[Name]]]:
    """The images for which most others were dropped, at least two, with those."""
    one = pairs.filter(pc.xor(pairs["dropped_a"], pairs["dropped_b"]))
    gone = one["dropped_b"]
    columns = {
        f"{role}_{part}": pc.if_else(gone, one[f"{part}_{first}"], one[f"{part}_{second}"])
        for role, first, second in (("kept", "a", "b"), ("gone", "b", "a"))
        for part in ("shard", "key")
    }
    kept = pa.table(columns).group_by(["kept_shard", "kept_key"], use_threads=False)
    listed = kept.aggregate([("gone_key", "count"), ("gone_shard", "list"), ("gone_key", "list")])
    rows = listed.sort_by([("gone_key_count", "descending")])[:GROUPS_SHOWN].to_pylist()
    return [
        ((row["kept_shard"], row["kept_key"]), list(zip(row["gone_shard_list"], row["gone_key_list"], strict=True)))
        for row in rows
        if row["gone_key_count"] > 1
    ]
