"""EvolInstruct (WizardLM, arXiv 2304.12244): instructions made harder step by step.

Two layouts were published: {"instruction", "output"} (WizardLM_evol_instruct_70k) and {"idx", "conversations":
[{"from", "value"}]} (WizardLM_evol_instruct_V2_196k).
"""

from __future__ import annotations

from ..sample import Row, TextSample, conversation, exchange, text_of
from .turns import turns_of


def convert(row: Row) -> TextSample:
    """The row's sample; raises BadRow."""
    if "conversations" in row:
        return conversation(turns_of(row, "conversations"), row.get("idx"))
    return exchange(text_of(row, "instruction"), text_of(row, "output"))
