"""AlpacaGPT4 (arXiv 2304.03277): Alpaca's instructions answered by GPT-4.

{"instruction", "input", "output"}, `input` often empty. Some copies add `text`, Alpaca's template filled in: not read.
"""

from __future__ import annotations

from ..sample import Row, TextSample, exchange, optional_text, text_of


def convert(row: Row) -> TextSample:
    """The row's sample; raises BadRow."""
    return exchange(instruction_and_input(row), text_of(row, "output"))


def instruction_and_input(row: Row) -> str:
    """The instruction and, after a blank line, what it is about; Alpaca's own template is not put around them."""
    return f"{text_of(row, 'instruction').strip()}\n\n{optional_text(row, 'input').strip()}"
