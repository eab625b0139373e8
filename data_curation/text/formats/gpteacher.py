"""GPTeacher (teknium): sets that GPT-4 wrote whole, among them General-Instruct, Roleplay and Code-Instruct.

{"instruction", "input", "response"}: Alpaca's columns but for the answer's name.
"""

from __future__ import annotations

from ..sample import Row, TextSample, exchange, text_of
from .alpaca_gpt4 import instruction_and_input


def convert(row: Row) -> TextSample:
    """The row's sample; raises BadRow."""
    return exchange(instruction_and_input(row), text_of(row, "response"))
