"""OCRBench's rule (Liu et al. 2023, "OCRBench"; example.py of its repository): an answer stands in the prediction.

Letters' case and line breaks do not count; for handwritten formulas (HME100k) case does, and spaces do not. lmms-eval
also reads full-width letters as plain ones, which the official script does not.
"""

from __future__ import annotations

from collections.abc import Sequence

from .answered import Answered

FORMULAS = "HME100k"


def score(answered: Answered) -> float:
    """1 or 0 for a row with `dataset` and `answer`: a text, or several of which one is enough."""
    row = answered.rows[0]
    given = row["answer"]
    return ocrbench_right(answered.answers[0], [given] if isinstance(given, str) else given, row["dataset"])


def ocrbench_right(prediction: str, answers: Sequence[str], dataset: str) -> float:
    """1.0 where one of `answers` stands in the prediction, else 0.0."""
    plain = _without_spaces if dataset == FORMULAS else _lower
    return float(any(plain(answer) in plain(prediction) for answer in answers))


def _lower(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _without_spaces(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")
