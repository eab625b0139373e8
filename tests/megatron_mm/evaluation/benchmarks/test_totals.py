"""Scores on the papers' scale, against lmms-eval's own aggregation of the same answers."""

from __future__ import annotations

import random

import pytest

from megavlm.megatron_mm.evaluation.benchmarks.table import benchmarks
from megavlm.megatron_mm.evaluation.benchmarks.totals import published_score
from megavlm.megatron_mm.evaluation.harness import lmms_library
from megavlm.megatron_mm.evaluation.predictions import Prediction
from megavlm.platform.errors import InputError


def test_popes_f1_is_lmms_evals():
    rng, aggregate = random.Random(1), lmms_library.load("tasks.pope.utils").pope_aggregate_f1_score
    pairs = [(rng.choice(["yes", "no", "maybe"]), rng.choice(["yes", "no"])) for _ in range(300)]
    pairs = [("no" if said == "maybe" else said, truth) for said, truth in pairs]
    items = [Prediction(str(n), "random", said == truth, said.title(), truth) for n, (said, truth) in enumerate(pairs)]
    theirs = aggregate([{"prediction": said, "ground_truth": truth} for said, truth in pairs])
    assert published_score(benchmarks()["pope"], items) == pytest.approx(100 * theirs)
    assert 0 < theirs < 1
    assert published_score(benchmarks()["pope"], [Prediction("1", "random", True, "no", "no")]) == 0.0


def test_mmes_perception_is_lmms_evals():
    rng, aggregate = random.Random(2), lmms_library.load("tasks.mme.utils").mme_aggregate_results
    records, items = [], []
    for number in range(200):
        kind = rng.choice(["existence", "count", "OCR", "code_reasoning"])
        right = [float(rng.random() < 0.7) for _ in range(2)]
        records += [{"question_id": str(number), "category": kind, "score": score} for score in right]
        value = sum(right) / 4 + (sum(right) == 2) / 2
        items.append(Prediction(str(number), kind, value == 1, "", "", score=value))
    theirs = aggregate([record for record in records if record["category"] != "code_reasoning"])
    assert published_score(benchmarks()["mme"], items) == pytest.approx(theirs)


def test_ocrbench_is_points_and_the_others_are_percent():
    items = [Prediction(str(n), "k", n < 3, "", "") for n in range(4)]
    assert published_score(benchmarks()["ocrbench"], items) == 3
    assert published_score(benchmarks()["docvqa"], items) == 75
    with pytest.raises(InputError):
        published_score(benchmarks()["docvqa"], [])


def test_every_total_of_the_table_is_known():
    items = [Prediction("1", "k", True, "yes", "yes")]
    for benchmark in benchmarks().values():
        assert published_score(benchmark, items) in (1.0, 100.0, 200.0)
