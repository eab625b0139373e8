"""WizardCoder (arXiv 2306.08568): code instructions made harder step by step, as open re-makings of its data hold them.

{"instruction", "output"}, as in Evol-Instruct-Code-80k-v1 and evol-codealpaca-v1; some copies keep an empty `input`.
"""

from __future__ import annotations

from ..sample import Row, TextSample, exchange, text_of
from .alpaca_gpt4 import instruction_and_input


def convert(row: Row) -> TextSample:
    """The row's sample; raises BadRow."""
    return exchange(instruction_and_input(row), text_of(row, "output"))
