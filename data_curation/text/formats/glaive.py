"""Glaive: code answers and function calls (glaiveai).

glaive-code-assistant: {"question", "answer"}. glaive-function-calling-v2: {"system", "chat"}; its first version:
{"sample"}, one text. In both SYSTEM:, USER:, ASSISTANT: and FUNCTION RESPONSE: begin turns; <|endoftext|> ends answers.
"""

from __future__ import annotations

import itertools
import re

from ..sample import BadRow, Row, TextSample, Turn, conversation, exchange, optional_text, text_of

SPEAKER = re.compile(r"^[ \t]*(SYSTEM|USER|ASSISTANT|FUNCTION RESPONSE):", re.MULTILINE)
ROLES = {"SYSTEM": "system", "USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "user"}
END = "<|endoftext|>"


def convert(row: Row) -> TextSample:
    """The row's sample; raises BadRow, unknown_role for a chat that does not begin with one of the four.

    A function's response is a turn of the user that keeps its heading, since training knows three roles. What one
    speaker says in several turns (an answer, then a call) is one turn here.
    """
    if "question" in row:
        return exchange(text_of(row, "question"), text_of(row, "answer"))
    if "sample" in row:
        return conversation(_turns(text_of(row, "sample")))
    return conversation(_turns(f"{optional_text(row, 'system')}\n{text_of(row, 'chat')}"))


def _turns(text: str) -> list[Turn]:
    head, *parts = SPEAKER.split(text)
    if head.strip():
        raise BadRow("unknown_role", f"the chat begins with '{head.strip()[:40]}'")
    turns = [_turn(speaker, said) for speaker, said in zip(parts[::2], parts[1::2], strict=True)]
    grouped = itertools.groupby(turns, key=lambda turn: turn[0])
    return [(role, "\n\n".join(text for _, text in same)) for role, same in grouped]


def _turn(speaker: str, said: str) -> Turn:
    said = said.replace(END, "").strip()
    return ROLES[speaker], f"{speaker}: {said}" if speaker == "FUNCTION RESPONSE" else said
