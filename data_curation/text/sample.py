"""The one type of text sample that every public format is turned into, and the rules that it keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Message = dict[str, str]
Turn = tuple[str, str]  # role, text


class BadRow(ValueError):
    """A row that no sample can be made of; `reason` is short and stable, `detail` names what is wrong."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclasses.dataclass(frozen=True)
class TextSample:
    """A conversation: perhaps a system turn, then user and assistant in turns, the assistant last.

    `messages` holds {"role", "content"}; `id` is the row's own, None where it has none; `source` is what the row itself
    says that it was made from (MathInstruct and UltraInteract gather other sets), "" where it says nothing.
    """

    messages: list[Message]
    id: str | None = None
    source: str = ""


def conversation(turns: Sequence[Turn], id: object = None, source: object = "") -> TextSample:
    """The sample of these turns, whose texts lose the white space around them; an empty system turn is left out.

    Raises BadRow: empty_turn, no_question (the user does not come first), roles_do_not_alternate, no_answer (the
    assistant is not last), invalid_text (half of a surrogate pair, which UTF-8 cannot hold).
    """
    kept = [(role, text.strip()) for role, text in turns]
    kept = kept[1:] if kept and kept[0] == ("system", "") else kept
    _check_texts(kept)
    _check_order([role for role, _ in kept if role != "system"] if _one_system(kept) else [role for role, _ in kept])
    messages = [{"role": role, "content": text} for role, text in kept]
    return TextSample(messages, None if id is None else _storable(str(id)), _storable(str(source)))


def exchange(question: str, answer: str, system: str = "", id: object = None, source: object = "") -> TextSample:
    """The sample of one question and its answer."""
    return conversation([("system", system), ("user", question), ("assistant", answer)], id, source)


def text_of(row: Row, column: str) -> str:
    """A column's text; raises BadRow missing_column when there is none, or something else than text."""
    value = row.get(column)
    if not isinstance(value, str):
        found = f"columns: {', '.join(sorted(map(str, row)))}" if value is None else f"a {type(value).__name__}"
        raise BadRow("missing_column", f"no text in column '{column}' ({found})"[:300])
    return value


def optional_text(row: Row, column: str) -> str:
    """A column's text, "" where it is absent or null; raises BadRow missing_column when it is something else."""
    return "" if row.get(column) is None else text_of(row, column)


def _one_system(turns: Sequence[Turn]) -> bool:
    return [role for role, _ in turns].count("system") == 1 and turns[0][0] == "system"


def _check_texts(turns: Sequence[Turn]) -> None:
    for number, (role, text) in enumerate(turns):
        if not text:
            raise BadRow("empty_turn", f"turn {number} ({role}) is empty")
        _storable(text)


def _check_order(roles: Sequence[str]) -> None:
    if not roles or roles[0] != "user":
        raise BadRow("no_question", f"the first turn is {roles[0] if roles else 'missing'}, not the user's")
    for number, role in enumerate(roles):
        if role != ("user", "assistant")[number % 2]:
            raise BadRow("roles_do_not_alternate", f"turn {number} is a second one of {role}")
    if roles[-1] != "assistant":
        raise BadRow("no_answer", "the last turn is the user's")


def _storable(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow("invalid_text", f"not Unicode: {error}"[:300]) from None
    return text
