"""A caption in words and lines, which all rules count alike."""

from __future__ import annotations

import dataclasses
import functools
import re

# Chinese and Japanese write no spaces: there each character counts as a word.
SPACELESS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{SPACELESS}]|[^\W_{SPACELESS}]+(?:['’-][^\W_{SPACELESS}]+)*")


@dataclasses.dataclass(frozen=True)
class Caption:
    """A caption and, where a model wrote it, why it stopped ("length": max_tokens cut it)."""

    text: str
    finish: str | None = None

    @functools.cached_property
    def words(self) -> list[str]:
        """Words in lower case, without punctuation."""
        return WORD.findall(self.text.lower())

    @functools.cached_property
    def lines(self) -> list[str]:
        """Lines that are not blank, stripped."""
        return [line.strip() for line in self.text.splitlines() if line.strip()]
