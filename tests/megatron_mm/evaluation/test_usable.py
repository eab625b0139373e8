"""Answers that were asked otherwise are not taken for what is asked now."""

from __future__ import annotations

from pathlib import Path

import pytest

from megavlm.megatron_mm.evaluation.predictions import About, Prediction, write_predictions
from megavlm.megatron_mm.evaluation.stage import How, usable

ITEM = [Prediction("mmlu/0", "anatomy", True, "A", "A")]
ASKED = About("mmlu", protocol="nvlm")


@pytest.mark.parametrize(
    ("about", "how", "expected"),
    [
        (ASKED, How("nvlm"), True),
        (ASKED, How("eagle"), False),
        (About("mmlu", protocol="nvlm", limit=10), How("nvlm"), False),
        (About("mmlu", protocol="nvlm", limit=10), How("nvlm", 10), True),
        (About("text"), How("eagle"), True),  # a held-out set is asked in one way only
    ],
)
def test_of_a_benchmark_only_what_was_asked_so(tmp_path: Path, about: About, how: How, expected: bool) -> None:
    path = tmp_path / f"{about.suite}.jsonl"
    assert not usable(path, None, how)
    write_predictions(path, ITEM, about)
    assert usable(path, None, how) is expected
