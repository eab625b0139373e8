"""Lists of turns, as ShareGPT's exports and the sets after it write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..sample import BadRow, Row, Turn

# ShareGPT's exports name the same two speakers in several ways; `bing` and `bard` are answers of other assistants.
ROLES: Mapping[str, str] = {
    "human": "user", "user": "user",
    "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant", "bing": "assistant", "bard": "assistant",
    "system": "system",
}  # fmt: skip


def turns_of(row: Row, column: str, role_key: str = "from", text_key: str = "value") -> list[Turn]:
    """The turns in a column [{role_key: speaker, text_key: text}, ...].

    Raises BadRow: missing_column (no list), not_a_turn (an entry without speaker or text), unknown_role.
    """
    entries = row.get(column)
    if not isinstance(entries, list):
        raise BadRow("missing_column", f"no list in column '{column}'")
    return [_turn(entry, number, role_key, text_key) for number, entry in enumerate(entries)]


def _turn(entry: Any, number: int, role_key: str, text_key: str) -> Turn:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in (role_key, text_key)):
        raise BadRow("not_a_turn", f"turn {number} has no '{role_key}' and '{text_key}' of text")
    role = ROLES.get(entry[role_key].strip().lower())
    if role is None:
        raise BadRow("unknown_role", f"turn {number} is of '{entry[role_key][:40]}'")
    return role, entry[text_key]


def without_last_question(turns: Sequence[Turn]) -> list[Turn]:
    """Without the user's turn at the end that nobody has answered: there is nothing to learn from it."""
    return list(turns[:-1] if len(turns) > 1 and turns[-1][0] == "user" else turns)
