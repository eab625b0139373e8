"""MetaMath (meta-math/MetaMathQA, arXiv 2309.12284): {"type", "query", "original_question", "response"}.

`type` says from which training set (GSM8K, MATH) the question was made, and how.
"""

from __future__ import annotations

from ..sample import Row, TextSample, exchange, text_of


def convert(row: Row) -> TextSample:
    """The row's sample, `source` its `type`; raises BadRow."""
    return exchange(text_of(row, "query"), text_of(row, "response"), source=row.get("type") or "")
