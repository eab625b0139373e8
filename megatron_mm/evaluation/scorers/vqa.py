"""VQA accuracy as the official script of VQAv2 computes it (Antol et al., "VQA"; vqaEval.py of the VQA API).

An answer is worth min(1, n/3) where n of the other nine annotators said it, averaged over the ten ways to leave one
out. Where all annotators agree the script normalises neither side, so that "Yes" is wrong against ten times "yes";
lmms-eval normalises always.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from ..harness import lmms_library
from .answered import Answered

FOR_FULL_MARKS = 3  # annotators


def score(answered: Answered) -> float:
    """The share of rightness of an answer to a row with `answers: [{answer: ...}, ...]`."""
    truths = [str(given["answer"]) for given in answered.rows[0]["answers"]]
    return vqa_accuracy(answered.answers[0], truths)


def vqa_accuracy(answer: str, truths: Sequence[str]) -> float:
    """VQA accuracy in [0, 1] of one answer against the annotators'; 0 where there are none."""
    answer, *truths = (re.sub(r"[\n\t]", " ", text).strip() for text in (answer, *truths))
    if not truths:
        return 0.0
    if len(set(truths)) > 1:
        answer, *truths = (_normal(text) for text in (answer, *truths))
    said = sum(truth == answer for truth in truths)
    worth = [min(1.0, (said - (truth == answer)) / FOR_FULL_MARKS) for truth in truths]
    return sum(worth) / len(worth)


def _normal(text: str) -> str:
    """Without punctuation, articles and upper case; number words as digits, contractions with their apostrophe."""
    processor = _processor()
    return str(processor.process_digit_article(processor.process_punctuation(text)))


@functools.cache
def _processor() -> Any:
    library = lmms_library.load("tasks._task_utils.vqa_eval_metric").EvalAIAnswerProcessor

    class Official(library):  # type: ignore[misc, valid-type]
        COMMA_STRIP = re.compile(r"(\d)(,)(\d)")  # lmms-eval's also takes several commas

    return Official()
