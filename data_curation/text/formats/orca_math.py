"""OrcaMath (microsoft/orca-math-word-problems-200k, arXiv 2402.14830): {"question", "answer"}."""

from __future__ import annotations

from ..sample import Row, TextSample, exchange, text_of


def convert(row: Row) -> TextSample:
    """The row's sample; raises BadRow."""
    return exchange(text_of(row, "question"), text_of(row, "answer"))
