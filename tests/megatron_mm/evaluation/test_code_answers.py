"""The program that a model's answer means."""

from __future__ import annotations

import pytest

from megavlm.megatron_mm.evaluation.code import program_text

PROMPT = 'from math import sqrt\n\n\ndef root(xs):\n    """A root."""\n'
CODE = "def root(xs):\n    return -xs[0] / xs[1]\n"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("    return 1.0\n", PROMPT + "    return 1.0\n"),
        (CODE, f"{PROMPT}\n\n{CODE}"),
        (f"Sure!\n\n```python\n{CODE}```\nIt divides.", f"{PROMPT}\n\n{CODE}"),
        (f"```\nroot([1])\n```\nor\n```py\n{CODE}\n```", f"{PROMPT}\n\n{CODE}\n"),
        (f"```python\n{CODE}", f"{PROMPT}\n\n{CODE}"),
        ("```python\n    return 1.0\n```", PROMPT + "    return 1.0\n"),
        (f"{CODE}\nThis is the answer.", f"{PROMPT}\n\n{CODE}\nThis is the answer."),
    ],
    ids=["completion", "whole", "fenced", "second fence", "open fence", "fenced body", "does not parse"],
)
def test_the_program_that_an_answer_means(answer, text):
    assert program_text(PROMPT, answer, "root") == text
