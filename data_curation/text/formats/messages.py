"""Chat messages, as OpenAI's fine-tuning files write them: {"messages": [{"role", "content"}]}, `id` optional."""

from __future__ import annotations

from ..sample import Row, TextSample, conversation
from .turns import turns_of


def convert(row: Row) -> TextSample:
    """The row's sample; raises BadRow."""
    return conversation(turns_of(row, "messages", "role", "content"), row.get("id"))
