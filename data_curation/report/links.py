"""Links before a download: what is left of the tables, with the rules' limits, and the command that fetches it."""

from __future__ import annotations

import json
import shlex
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from megavlm.platform.report import Report

from ..distributions import linear
from .distributions import Tally
from .limits import Limit
from .measures import CAPTIONS, PICTURES, UNIT, Measure, Values, numbers, words
from .pictures import Pictures
from .view import View

ROWS_MEASURED = 65_536  # of each table: its first row groups
MEASURES = (
    (PICTURES.measures[0], "min_side", "below"),
    (PICTURES.measures[1], "max_aspect", "above"),
    (CAPTIONS.measures[0], "min_caption_words", "below"),
    (
        Measure("similarity", "Similarity of image and caption", "cosine", linear(-1, 1, 400), whole=False),
        "min_similarity",
        "below",
    ),
    (
        Measure("punsafe", "Probability that the image is unsafe", "probability", UNIT, whole=False),
        "max_punsafe",
        "above",
    ),
    (Measure("pwatermark", "Probability of a watermark", "probability", UNIT, whole=False), "max_pwatermark", "above"),
)
NUMBERS = ("width", "height", "similarity", "punsafe", "pwatermark")


def add_links(view: View, pictures: Pictures, report: Report) -> None:
    """Distributions of the rows that stay: those that went are counted and kept nowhere."""
    if not view.has("links"):
        return
    kept = view.line("links")["kept"]
    about = f"{kept:,} rows are left to download. Rows that went are only counted, so these charts show what stays."
    report.section("Links", f"{about} {view.scope('links')}".strip())
    report.panels("", [tally.chart() for tally in measured(view) if tally.before.total])
    path = view.run.folder.path("links", "download.json")
    if path.exists():
        report.text("The command that downloads them (links/download.sh):")
        report.text(shlex.join(json.loads(path.read_text())))


def measured(view: View) -> list[Tally]:
    """Of the tables' first rows, added up table by table."""
    rules: Any = view.stages["links"]
    tallies = []
    for measure, option, side in MEASURES:
        value = getattr(rules.rules, option)
        tallies.append(Tally(measure, [Limit(float(value), side)] if value else [], None))
    for shard in view.shards("links"):
        values = _values(view, shard)
        for tally in tallies:
            if tally.measure.name in values:
                tally.add(values[tally.measure.name], np.zeros(len(values[tally.measure.name]), bool))
    return tallies


def _values(view: View, shard: str) -> Values:
    path = view.run.folder.path("links", "tables", f"{shard}.parquet")
    if not path.exists():
        return {}
    with pq.ParquetFile(path) as file:
        batch = next(file.iter_batches(ROWS_MEASURED), None)
    if batch is None:
        return {}
    there = [name for name in NUMBERS if name in batch.schema.names]
    found = {name: numbers(batch.column(name)) for name in there}
    if {"width", "height"} <= found.keys():
        short, long = np.fmin(found["width"], found["height"]), np.fmax(found["width"], found["height"])
        found |= {"short_side": short, "aspect": long / short}
    return found | {"words": words(batch.column("caption"))}
