"""Rules on captions."""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import NonNegativeInt, PositiveInt, field_validator

from .base import Facts, Filter

# What a camera or a content management system called the file, and bare links.
NO_CAPTIONS = (r"\S+\.(jpe?g|png|gif|webp|bmp|tiff?)", r"(img|dsc|dscn|image|photo|untitled)[ _-]?\d*", r"https?://\S+")


class CaptionLength(Filter):
    """Words (by white space) and characters; the defaults are DataComp's basic filter: over 2 words, over 5 signs."""

    reason: ClassVar[str] = "short_caption"

    min_words: NonNegativeInt = 3
    min_characters: NonNegativeInt = 6
    max_characters: PositiveInt = 100_000

    def breaks(self, facts: Facts) -> str | None:
        """The count that is out of bounds."""
        words, characters = len(facts.caption.split()), len(facts.caption)
        if words < self.min_words:
            return f"{words} words"
        return None if self.min_characters <= characters <= self.max_characters else f"{characters} characters"


class CaptionPattern(Filter):
    """Captions that are nothing but one of these patterns (regular expressions, the whole caption, any case)."""

    reason: ClassVar[str] = "no_caption"

    patterns: tuple[str, ...] = NO_CAPTIONS

    @field_validator("patterns")
    @classmethod
    def _valid(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"'{pattern}' is no regular expression: {error}") from None
        return patterns

    def breaks(self, facts: Facts) -> str | None:
        """The caption itself, cut."""
        text = facts.caption.strip()
        found = any(re.fullmatch(pattern, text, re.IGNORECASE) for pattern in self.patterns)
        return f"'{text[:60]}'" if found else None


class Language(Filter):
    """The language that the source's metadata name; a sample without one is dropped."""

    reason: ClassVar[str] = "language"

    keep: tuple[str, ...] = ("en",)
    column: str = "LANGUAGE"

    def breaks(self, facts: Facts) -> str | None:
        """The language named."""
        said = facts.metadata.get(self.column, facts.metadata.get(self.column.lower()))
        return None if said in self.keep else f"{self.column} {said}"
