"""What is measured of every sample: which sidecar knows it, in which bins it is counted, and how it is drawn."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..distributions import linear, octaves, whole_numbers
from ..filters.scores import Score, Similarity, Unsafe, Watermark, number

Values = dict[str, np.ndarray]  # measure -> float64 [rows], NaN where nothing is known
PARSED = 20  # shards whose metadata are parsed: JSON is slow to read


@dataclasses.dataclass(frozen=True)
class Measure:
    """One histogram: `name` is what a Reading calls the values."""

    name: str
    title: str
    unit: str
    edges: np.ndarray
    log: bool = False
    whole: bool = True  # counted in whole numbers

    def told(self, value: float) -> str:
        """A value for people."""
        return f"{value:,.0f}" if self.whole or abs(value) >= 1000 else f"{value:.3g}"


@dataclasses.dataclass(frozen=True)
class Reading:
    """Columns of a stage's sidecars and what they say. `after` is the series of those whom `judge` kept.

    Without a judge that is the last one which has decided on everything.
    """

    stage: str
    columns: Sequence[str]
    derive: Callable[[pa.Table], Values]
    measures: Sequence[Measure]
    judge: str | None = None
    shards: int | None = None  # at most, None: all that are measured


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """float64 [n] with NaN for null."""
    return np.asarray(pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False), np.float64)


def of_pictures(table: pa.Table) -> Values:
    """What the filter stage measured."""
    found = {name: numbers(table[name]) for name in ("width", "height", "bytes", "contrast", "pdq_quality")}
    short, long = np.fmin(found["width"], found["height"]), np.fmax(found["width"], found["height"])
    return found | {"short_side": short, "aspect": long / short}


def words(column: pa.ChunkedArray) -> np.ndarray:
    """Words by white space of each text, float64 [n]; NaN for null."""
    texts = pc.utf8_trim_whitespace(column)
    counts = numbers(pc.add(pc.count_substring_regex(texts, r"\s+"), 1))
    return np.where(numbers(pc.utf8_length(texts)) == 0, 0.0, counts)


PIXELS, WORDS, UNIT = octaves(0, 17, 8), whole_numbers(10_000, 8), linear(0, 1, 200)
PICTURES = Reading(
    "filter",
    ("key", "width", "height", "bytes", "contrast", "pdq_quality"),
    of_pictures,
    (
        Measure("short_side", "Shorter side", "px", PIXELS, log=True),
        Measure("aspect", "Aspect: longer side / shorter side", "ratio", octaves(0, 6, 16), log=True, whole=False),
        Measure("bytes", "Size of the file", "bytes", octaves(4, 34, 4), log=True),
        Measure("contrast", "Contrast: deviation of the gray values", "of 128", linear(0, 128, 256), whole=False),
        Measure("pdq_quality", "Quality of the perceptual hash (PDQ)", "0 to 100", linear(-0.5, 100.5, 101)),
    ),
)
CAPTIONS = Reading(
    "ingest",
    ("key", "keep", "caption"),
    lambda table: {"words": words(table["caption"])},
    (Measure("words", "Words of the original caption", "words", WORDS, log=True),),
)
NEW_CAPTIONS = Reading(
    "recaption",
    ("key", "keep", "caption"),
    lambda table: {"new_words": words(table["caption"])},
    (Measure("new_words", "Words of the new caption", "words", WORDS, log=True),),
)
LEAKS = Reading(
    "decontaminate",
    ("key", "keep", "distance"),
    lambda table: {"leak_bits": numbers(table["distance"])},
    (Measure("leak_bits", "Distance to the nearest evaluation image", "bits of 256", linear(-0.5, 256.5, 257)),),
    judge="decontaminate",
)


def cosines(stage: str) -> Reading:
    """Cosine to the centroid, of what `select` received, or of everything where the recipe selects nothing."""
    measure = Measure("cosine", "Cosine to the centroid", "cosine", linear(-1, 1, 800), whole=False)
    derive: Callable[[pa.Table], Values] = lambda table: {"cosine": numbers(table["cosine"])}  # noqa: E731
    return Reading(stage, ("key", "keep", "cosine"), derive, (measure,), judge=stage if stage == "select" else None)


class Aesthetic(Score):
    """LAION's aesthetic scores, which no shipped rule looks at."""

    columns = ("aesthetic", "AESTHETIC_SCORE", "aesthetic_score")


# Scores that LAION's releases bring along, whether or not a rule looks at them.
KNOWN_SCORES = {
    "similarity": (Similarity, "Similarity of image and caption (the source's CLIP)", "cosine", linear(-1, 1, 400)),
    "punsafe": (Unsafe, "Probability that the image is unsafe", "probability", UNIT),
    "watermark": (Watermark, "Probability of a watermark", "probability", UNIT),
    "aesthetic": (Aesthetic, "Aesthetic score", "score", linear(-5, 15, 400)),
}


def scores(rules: Sequence[Score]) -> Reading:
    """Scores in the metadata: the known ones, and those of a recipe's own rules."""
    columns = {name: known[0].columns for name, known in KNOWN_SCORES.items()}
    measures = [Measure(name, *known[1:], whole=False) for name, known in KNOWN_SCORES.items()]
    for rule in rules:
        if rule.columns not in columns.values():
            columns[rule.use] = rule.columns
            measures.append(
                Measure(rule.use, f"Score {rule.columns[0]}", "score", linear(-100, 100, 2000), whole=False)
            )

    def derive(table: pa.Table) -> Values:
        told = [_object(text) for text in table["metadata"].to_pylist()]
        return {name: _scores(told, names) for name, names in columns.items()}

    return Reading("ingest", ("key", "keep", "metadata"), derive, measures, shards=PARSED)


def _object(text: str | None) -> Mapping[str, object]:
    return json.loads(text) if text else {}


def _scores(told: Sequence[Mapping[str, object]], columns: tuple[str, ...]) -> np.ndarray:
    found = (number(one, columns) for one in told)
    return np.array([np.nan if value is None else value for value in found], np.float64)
