"""The committed constants are what the fit gives, and a source that it has not seen is predicted within bounds."""

from __future__ import annotations

import dataclasses
import statistics

import pytest

from megavlm.megatron_mm.planning.dense import job_of
from megavlm.megatron_mm.planning.fit import CONSISTENT, consistent, fit, predictions
from megavlm.megatron_mm.planning.points import points
from megavlm.megatron_mm.planning.rates import Constants, constants
from megavlm.megatron_mm.planning.timing import step_time


@pytest.fixture(scope="module")
def found():
    return predictions()


def test_there_are_five_fitted_constants_at_most():
    assert len(dataclasses.fields(Constants)) <= 5


def test_the_committed_constants_are_those_of_the_fit():
    fitted = dataclasses.asdict(fit([row for row in points() if consistent(row)]))
    assert dataclasses.asdict(constants()) == pytest.approx(fitted, abs=6e-4)


def test_unseen_sources_are_predicted_within_10_percent_in_the_middle_and_20_at_worst(found):
    errors = [abs(each.unseen) for each in found]
    assert len({each.point.source for each in found}) >= 6 and len(found) >= 30
    assert statistics.median(errors) <= 0.10
    assert max(errors) <= 0.20


def test_constants_are_found_again_in_steps_that_they_made():
    """Rows whose published time is the model's own under other constants."""
    made = Constants(products_bf16=0.7, products_fp8=0.4, links=0.9)
    rows = [row for row in points() if row.source in ("N24", "KO", "TT")]
    told = [
        row.model_copy(
            update={"seconds": step_time(job_of(row), made).total, "tokens": None, "tflops": None, "mfu": None}
        )
        for row in rows
    ]
    assert dataclasses.asdict(fit(told)) == pytest.approx(dataclasses.asdict(made), rel=1e-3)


def test_the_row_that_contradicts_itself_is_not_fitted(found):
    assert [row.name for row in points() if not consistent(row)] == ["Llama3-70B FP8 26.04.01"]
    assert len(found) == len(points()) - 1 and CONSISTENT < 0.02
