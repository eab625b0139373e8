"""SlimOrca (Open-Orca/SlimOrca): FLAN questions with GPT-4's answers and a system prompt each.

{"conversations": [{"from": "system" | "human" | "gpt", "value", "weight"}]}; `weight` is 0 but for answers and is
implied by the roles.
"""

from __future__ import annotations

from ..sample import Row, TextSample, conversation
from .turns import turns_of


def convert(row: Row) -> TextSample:
    """The row's sample; raises BadRow."""
    return conversation(turns_of(row, "conversations"))
