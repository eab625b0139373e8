"""UltraInteract (Eurus, arXiv 2404.02078): reasoning in turns with an environment and a critique.

UltraInteract_sft: {"task", "dataset", "instruction", "response", "id", "parent_id"}. UltraInteract_pair: {"task",
"dataset", "trajectory": [{"from": "user" | "assistant", "value"}], "chosen", "rejected", "id", "parent_id"}; the chosen
answer ends the trajectory, the rejected one is not read.
"""

from __future__ import annotations

from ..sample import Row, TextSample, conversation, exchange, text_of
from .turns import turns_of


def convert(row: Row) -> TextSample:
    """The row's sample, `source` its `dataset`; raises BadRow."""
    id, source = row.get("id"), row.get("dataset") or ""
    if "trajectory" in row:
        turns = [*turns_of(row, "trajectory"), ("assistant", text_of(row, "chosen"))]
        return conversation(turns, id, source)
    return exchange(text_of(row, "instruction"), text_of(row, "response"), id=id, source=source)
