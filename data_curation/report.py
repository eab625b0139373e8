"""The curation's part of a run's report: the funnel, clusters in pictures, what was dropped and why."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megavlm.platform.images import BadImage, decode
from megavlm.platform.report import Report
from megavlm.platform.runs import RunFolder

from .funnel import funnel, notes
from .run import CurationRun
from .source import image_bytes, image_field, read_samples

CLUSTERS_SHOWN = 8
PICTURES_PER_CLUSTER = 6
PICTURES_PER_REASON = 8
SHARDS_SEARCHED = 20  # a report reads pictures from at most so many raw shards
THUMBNAIL = 160  # px, longest side
Name = tuple[str, str]  # shard, key


def add_sections(run: RunFolder, report: Report) -> None:
    """Add the curation's sections; does nothing in a run that has curated nothing to the end."""
    if not run.path("funnel.json").exists():
        return
    curation = CurationRun.open(run.root)
    _add_funnel(curation, report)
    if "assign" in curation.config.stages.root:
        _add_clusters(curation, report)
    if "deduplicate" in curation.config.stages.root:
        _add_duplicates(curation, report)
    _add_dropped(curation, report)


def _add_funnel(run: CurationRun, report: Report) -> None:
    lines = funnel(run)
    report.section("Curation", "Every stage's samples in and kept, and the reasons of those that were dropped.")
    report.bar_chart("Samples left after each stage", {line["stage"]: float(line["kept"]) for line in lines}, "samples")
    rows = [line | {"reasons": ", ".join(f"{reason} {n}" for reason, n in line["dropped"].items())} for line in lines]
    report.table(rows, ["stage", "in", "kept", "reasons", "seconds"])
    if "embed" in run.config.stages.root:
        facts = notes(run, "embed")
        report.text(f"Features: {facts.get('model')} at {facts.get('image_size')} px. Weights: {facts.get('weights')}.")


def _add_clusters(run: CurationRun, report: Report) -> None:
    facts = notes(run, "cluster")
    intro = (
        f"{facts.get('clusters')} clusters of {facts.get('images')} images, {facts.get('iterations_run')} iterations of"
        f" K-means run. The images nearest to the centroids of the {CLUSTERS_SHOWN} largest clusters:"
    )
    report.section("Clusters", intro)
    members = _members(run)
    pictures = _thumbnails(run, [name for names in members.values() for name in names[:PICTURES_PER_CLUSTER]])
    for cluster, names in members.items():
        shown = [(pictures[name], name[1]) for name in names if name in pictures][:PICTURES_PER_CLUSTER]
        report.gallery(f"Cluster {cluster}: {len(names)} images", shown, size=96)


def _members(run: CurationRun) -> dict[int, list[Name]]:
    """The largest clusters' images, nearest to the centroid first, from the first SHARDS_SEARCHED shards."""
    parts = []
    for shard in run.shards[:SHARDS_SEARCHED]:
        part = run.sidecar("assign", shard.name, ["key", "cluster", "cosine"])
        parts.append(part.append_column("shard", pa.repeat(shard.name, len(part))))
    found: dict[int, list[Name]] = {}
    for row in pa.concat_tables(parts).sort_by([("cosine", "descending")]).to_pylist():
        found.setdefault(row["cluster"], []).append((row["shard"], row["key"]))
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))[:CLUSTERS_SHOWN])


def _add_duplicates(run: CurationRun, report: Report) -> None:
    pairs = pq.read_table(run.folder.path("deduplicate", "pairs.parquet")).to_pylist()
    options = run.config.stages["deduplicate"].model_dump()
    chosen = ", ".join(f"{name} {value}" for name, value in options.items() if value is not None)
    report.section(
        "Duplicates", f"{len(pairs)} pairs; found with {chosen}. Of each chain of duplicates one image stays."
    )
    methods: dict[str, float] = {}
    for pair in pairs:
        methods[pair["found_by"]] = methods.get(pair["found_by"], 0.0) + 1
    report.bar_chart("Pairs by the methods that found them", methods, "pairs")
    shown = _spread(pairs, PICTURES_PER_REASON)
    names = [((pair["shard_a"], pair["key_a"]), (pair["shard_b"], pair["key_b"])) for pair in shown]
    pictures = _thumbnails(run, [name for both in names for name in both])
    report.gallery("Pairs side by side", _pair_pictures(shown, names, pictures), size=96)


def _pair_pictures(
    pairs: list[dict[str, Any]], names: list[tuple[Name, Name]], pictures: Mapping[Name, bytes]
) -> Iterable[tuple[bytes, str]]:
    for number, (pair, both) in enumerate(zip(pairs, names, strict=True), start=1):
        for name, dropped in zip(both, (pair["dropped_a"], pair["dropped_b"]), strict=True):
            if name in pictures:
                yield pictures[name], f"pair {number}, {pair['found_by']}: {'dropped' if dropped else 'kept'} {name[1]}"


def _spread(items: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """`count` items at even distances: the first ones would all come from one shard."""
    step = max(1, len(items) // count)
    return items[::step][:count]


def _add_dropped(run: CurationRun, report: Report) -> None:
    rejected = pq.read_table(run.folder.path("rejected.parquet")).to_pylist()
    report.section("Dropped", f"{len(rejected)} samples, each listed in rejected.parquet with its reason.")
    by_reason: dict[str, list[dict[str, Any]]] = {}
    for row in rejected:
        by_reason.setdefault(row["reason"], []).append(row)
    shown = {reason: _spread(rows, PICTURES_PER_REASON) for reason, rows in by_reason.items()}
    pictures = _thumbnails(run, [(row["shard"], row["key"]) for rows in shown.values() for row in rows])
    for reason, rows in shown.items():
        seen = [
            (pictures.get((row["shard"], row["key"]), b""), f"{row['key']}: {row['detail'] or reason}") for row in rows
        ]
        report.gallery(f"{reason}: {len(by_reason[reason])}", seen, size=96)


def _thumbnails(run: CurationRun, names: Iterable[Name]) -> dict[Name, bytes]:
    """JPEG thumbnails of raw samples that decode, each raw shard read once and only the first SHARDS_SEARCHED."""
    wanted: dict[str, set[str]] = {}
    for shard, key in names:
        wanted.setdefault(shard, set()).add(key)
    found = {}
    for source in [shard for shard in run.shards if shard.name in wanted][:SHARDS_SEARCHED]:
        for sample in read_samples(source, wanted[source.name]):
            if image_field(sample.fields) and (picture := _thumbnail(image_bytes(sample))):
                found[source.name, sample.key] = picture
    return found


def _thumbnail(data: bytes) -> bytes | None:
    from PIL import Image

    try:
        image = Image.fromarray(decode(data))
    except BadImage:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
