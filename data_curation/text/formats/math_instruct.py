"""MathInstruct (TIGER-Lab, arXiv 2309.05653): {"source", "instruction", "output"}.

`source` names the file that the row came from. Program-of-thought rows ask for a program in their instruction.
"""

from __future__ import annotations

from ..sample import Row, TextSample, exchange, text_of


def convert(row: Row) -> TextSample:
    """The row's sample, `source` the row's; raises BadRow."""
    return exchange(text_of(row, "instruction"), text_of(row, "output"), source=row.get("source") or "")
