"""Rules on scores that a source's metadata carry, as LAION's do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from .base import Facts, Filter


class Score(Filter):
    """A number of the metadata within bounds (inclusive)."""

    columns: ClassVar[tuple[str, ...]]

    min: float = -math.inf
    max: float = math.inf
    missing: Literal["drop", "keep"] = "drop"  # a sample that nobody scored has not passed

    def breaks(self, facts: Facts) -> str | None:
        """The value, or that there is none."""
        value = number(facts.metadata, self.columns)
        if value is None:
            return f"no {self.columns[0]}" if self.missing == "drop" else None
        return None if self.min <= value <= self.max else f"{self.columns[0]} {value:.3f}"


class Unsafe(Score):
    """LAION's probability that an image is not safe for work (0..1, a head on CLIP ViT-L/14)."""

    reason: ClassVar[str] = "unsafe"
    columns: ClassVar[tuple[str, ...]] = ("punsafe",)

    max: float = 0.5  # LAION-Aesthetics' threshold


class Watermark(Score):
    """LAION's probability of a watermark (0..1)."""

    reason: ClassVar[str] = "watermark"
    columns: ClassVar[tuple[str, ...]] = ("pwatermark",)

    max: float = 0.8  # LAION-Aesthetics' threshold


class Aesthetic(Score):
    """LAION's prediction of how much people like an image (1..10, a head on CLIP ViT-L/14).

    Published sets: LAION-Aesthetics v2 from 4.5, 5 and 6 on; v1, by another head, above 7, and laion-art above 8.
    """

    reason: ClassVar[str] = "low_aesthetic"
    columns: ClassVar[tuple[str, ...]] = ("aesthetic", "AESTHETIC_SCORE", "aesthetic_score")

    min: float = 5.0  # LAION-Aesthetics v2's "5+"


class Similarity(Score):
    """Cosine of CLIP's image and text features, by the model that the source used."""

    reason: ClassVar[str] = "low_similarity"
    columns: ClassVar[tuple[str, ...]] = ("similarity", "SIMILARITY", "clip_l14_similarity_score")

    min: float = 0.28  # LAION-2B-en's threshold with ViT-B/32


def number(metadata: Mapping[str, Any], columns: tuple[str, ...]) -> float | None:
    """The first of these values that is a number (as one, or as text)."""
    for column in columns:
        try:
            value = float(metadata[column])
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
        if not math.isnan(value):
            return value
    return None
