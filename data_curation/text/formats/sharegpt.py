"""ShareGPT: conversations that people shared, in the layout of FastChat's training files.

{"id", "conversations": [{"from": "human" | "gpt" | "system", "value"}]}; the layout of the data set
ShareGPT_Vicuna_unfiltered. Other speakers (`user`, `chatgpt`, `bing`, `bard`) occur in it.
"""

from __future__ import annotations

from ..sample import Row, TextSample, conversation
from .turns import turns_of, without_last_question


def convert(row: Row) -> TextSample:
    """The row's sample; a last question without an answer is left out. Raises BadRow.

    Long conversations were published in pieces, so many rows begin with an answer: those are refused (no_question).
    """
    return conversation(without_last_question(turns_of(row, "conversations")), row.get("id"))
