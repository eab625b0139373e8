"""MathVista (Lu et al. 2024) without a GPT: the answer is extracted by rules, then compared as officially.

The official extraction asks a GPT for the answer in a free text. Here it is: the option named, or the last number. So
answers hidden in prose are missed, and scores lie at or below those with a GPT.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..harness import lmms_library
from .answered import Answered

NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?|-?\.\d+")
LIST = re.compile(r"\[[^\[\]]*\]")


def score(answered: Answered) -> float:
    """1 or 0 for a row of MathVista's columns."""
    row = answered.rows[0]
    choices = list(row["choices"] or [])
    if row["question_type"] == "multi_choice":
        found = choice_of(answered.answers[0], choices)
    else:
        found = value_of(answered.answers[0], row["answer_type"], row.get("precision"))
    return float(found is not None and found.strip() == str(row["answer"]).strip())


def choice_of(answer: str, choices: Sequence[str]) -> str | None:
    """The option that an answer names by its text or its letter; else the one spelt most alike, as officially."""
    text = answer.strip()
    if not text or not choices:
        return None
    if text in choices:
        return text
    named = [choice for choice in choices if re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", text)]
    extract = lmms_library.load("tasks._task_utils.mcq_extract").extract_mcq_answer
    letter = extract(text, choices=[chr(ord("A") + place) for place in range(len(choices))])
    if letter and (len(text) == 1 or re.search(rf"\({letter}\)|(?<!\w){letter}(?:[.:)]|$)", text)):
        return choices[ord(letter) - ord("A")]
    if len(named) == 1:
        return named[0]
    distance = lmms_library.load("api.metrics").levenshtein_distance
    return min(choices, key=lambda choice: int(distance(text, choice)))


def value_of(answer: str, kind: str, precision: Any) -> str | None:
    """The last number (or bracketed list) of an answer, written as the set writes its truth; None without one."""
    if kind == "list":
        lists = LIST.findall(answer)
        return lists[-1] if lists else None
    numbers = NUMBER.findall(answer)
    if kind not in ("integer", "float"):
        return answer
    if not numbers:
        return None
    number = float(numbers[-1].replace(",", ""))
    return str(int(number)) if kind == "integer" else str(round(number, int(precision or 0)))
