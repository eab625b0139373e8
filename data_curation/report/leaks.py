"""Evaluation leaks: dropped samples beside the evaluation images that they resemble, the least alike first."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megavlm.platform.report import Case, Report
from megavlm.platform.shards import Sample

from ..source import RUN_MARK, Shard
from ..sources.base import Source
from .facts import facts, size_of
from .pictures import GONE, THUMBNAIL, Pictures, encoded, thumbnail
from .samples import examples
from .view import View

if TYPE_CHECKING:
    from PIL.Image import Image

DRAWN, SHOWN = 200, 8
SIZES = ("width", "height", "bytes")


def add_leaks(view: View, pictures: Pictures, report: Report) -> None:
    """Counts by set, and leaks with their evaluation images."""
    if not view.has("decontaminate"):
        return
    options: Any = view.stages["decontaminate"]
    gone = sum(view.line("decontaminate")["dropped"].values())
    near = f"differ from an image of {', '.join(options.against)} in at most {options.radius} of 256 bits"
    report.section("Evaluation images", f"{gone:,} samples {near}, or are the same file.")
    rows = examples(view, "decontaminate", DRAWN, ["distance"]).get("evaluation_image", [])
    # the farthest are where errors are; equal bytes come last
    rows.sort(key=lambda row: (is_copy(row), -(row["distance"] or 0)))
    shown = rows[: SHOWN // 2] + rows[SHOWN // 2 :][:: max(1, len(rows) // SHOWN)][: SHOWN - SHOWN // 2]
    names = [(row["shard"], row["key"]) for row in shown]
    found, sizes = pictures.encoded(names), facts(view, "filter", names, SIZES)
    known = evaluation_images(options.against, [item_of(row["detail"]) for row in shown])
    cases = []
    for row, name in zip(shown, names, strict=True):
        item = item_of(row["detail"])
        there = encoded(known[item]) if item in known else b""
        told = ", ".join(filter(None, [f"dropped: {row['key']}", size_of(sizes.get(name))]))
        sides = [(found.get(name, b""), told), (there, f"{item[0]}: {item[1]}")]
        why = row["detail"].rpartition(", ")[2] + ("" if is_copy(row) else f" differ (limit {options.radius})")
        cases.append(Case(sides, [("why", why)]))
    report.cases("Weakest evidence first: dropped | evaluation image", cases, THUMBNAIL)
    pictures.tell(report, len(set(names)), len(found))


def is_copy(row: dict[str, Any]) -> bool:
    """Whether a sample is the evaluation image's very file."""
    return str(row["detail"]).endswith("equal bytes")


def item_of(detail: str) -> tuple[str, str]:
    """(set, SHARD/KEY of its image) of a verdict's words "SET: SHARD/KEY, ..."."""
    name, _, rest = detail.partition(": ")
    return name, rest.rpartition(", ")[0]


def evaluation_images(sets: Mapping[str, Source], items: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Image]:
    """Those of the named images that are still where the recipe says."""
    wanted: dict[str, set[str]] = {}
    for name, item in items:
        wanted.setdefault(name, set()).add(item)
    found: dict[tuple[str, str], Image] = {}
    with tempfile.TemporaryDirectory() as folder:  # for the lists of sources that keep some
        for name, keys in wanted.items():
            try:
                found |= {(name, item): image for item, image in _of_set(sets[name], keys, Path(folder, name)).items()}
            except GONE:
                continue
    return found


def _of_set(source: Source, items: set[str], members: Path) -> dict[str, Image]:
    found = {}
    for shard in source.find(members):
        keys = {key for name, _, key in (item.partition("/") for item in items) if name == shard.name}
        for one in source.read(_placed(shard, members), keys=keys) if keys else ():
            item = f"{shard.name}/{one.key}"
            if isinstance(one, Sample) and item in items and (image := thumbnail(one, THUMBNAIL)) is not None:
                found[item] = image
    return found


def _placed(shard: Shard, members: Path) -> Shard:
    """A shard whose list lies in `members`, as hash_set found it."""
    if not shard.url.startswith(RUN_MARK):
        return shard
    return dataclasses.replace(shard, url=str(members / shard.url.rsplit("/", 1)[-1]))
