"""Rules on rows of links, a column at a time: what they drop is never downloaded."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat

from megavlm.platform.config import Config

Mask = np.ndarray


class LinkRules(Config):
    """A row goes on when it breaks none. A rule that is set needs its column; a row without a value breaks it."""

    min_side: NonNegativeInt = 200  # pixels; DataComp's basic filter. 0 turns it off
    max_aspect: PositiveFloat = 3.0  # longer side / shorter side; DataComp's basic filter
    min_caption_words: NonNegativeInt = 1
    min_caption_characters: NonNegativeInt = 1
    max_punsafe: NonNegativeFloat | None = None  # LAION-Aesthetics: 0.5
    max_pwatermark: NonNegativeFloat | None = None  # LAION-Aesthetics: 0.8
    min_aesthetic: float | None = None  # LAION-Aesthetics v2: 4.5, 5 or 6; v1, by another head, 7
    min_similarity: float | None = None  # LAION-2B-en: 0.28, LAION-400M: 0.3
    languages: tuple[str, ...] | None = None

    def needed(self) -> dict[str, str]:
        """Column (our name) -> the option that needs it."""
        wanted = {"url": "", "caption": "", "width": "min_side", "height": "min_side"}
        if not self.min_side:
            del wanted["width"], wanted["height"]
        scores = {"punsafe": "max_punsafe", "pwatermark": "max_pwatermark"}
        scores |= {"aesthetic": "min_aesthetic", "similarity": "min_similarity", "language": "languages"}
        return wanted | {column: option for column, option in scores.items() if getattr(self, option) is not None}

    def reasons(self, table: pa.Table) -> np.ndarray:
        """object [n]: the first rule that each row breaks, None where it breaks none."""
        reasons, passing = np.full(len(table), None, dtype=object), np.ones(len(table), dtype=bool)
        for reason, broken in self._broken(table):
            reasons[broken & passing] = reason
            passing &= ~broken
        return reasons

    def _broken(self, table: pa.Table) -> Iterator[tuple[str, Mask]]:
        yield "no_url", ~_true(pc.match_substring_regex(pc.cast(table["url"], pa.string()), r"^https?://\S+$"))
        caption = pc.utf8_trim_whitespace(pc.cast(table["caption"], pa.string()))
        words = pc.add(pc.count_substring_regex(caption, r"\s+"), 1)
        long_enough = pc.and_(
            pc.greater_equal(pc.utf8_length(caption), max(1, self.min_caption_characters)),
            pc.greater_equal(words, self.min_caption_words),
        )
        yield "short_caption", ~_true(long_enough)
        if self.min_side:
            width, height = _number(table["width"]), _number(table["height"])
            short, long = np.minimum(width, height), np.maximum(width, height)
            yield "too_small", ~(short >= self.min_side)
            yield "aspect_ratio", ~(long <= self.max_aspect * short)
        for column, reason in (("punsafe", "unsafe"), ("pwatermark", "watermark")):
            if (most := getattr(self, f"max_{column}")) is not None:
                yield reason, ~(_number(table[column]) <= most)
        for column, reason in (("aesthetic", "low_aesthetic"), ("similarity", "low_similarity")):
            if (least := getattr(self, f"min_{column}")) is not None:
                yield reason, ~(_number(table[column]) >= least)
        if self.languages is not None:
            yield "language", ~_true(pc.is_in(table["language"], value_set=pa.array(self.languages)))


def _true(values: pa.ChunkedArray) -> Mask:
    """bool [n]; null is false."""
    return np.asarray(pc.fill_null(values, False).to_numpy(zero_copy_only=False), dtype=bool)


def _number(values: pa.ChunkedArray) -> np.ndarray:
    """float64 [n]; null is NaN, which is neither above nor below anything."""
    return np.asarray(pc.cast(values, pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
