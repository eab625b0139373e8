"""Generation in batches and scoring over two processes, by tensor or by pipeline parallelism, against one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORKER = Path(__file__).parent / "inference_worker.py"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, on_ranks: Callable[..., None]) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("layouts")
    on_ranks(WORKER, 2, work)
    return json.loads((work / "results.json").read_text())


def tokens(said: list[list[Any]]) -> list[list[int]]:
    return [[token for token, _, _ in one] for one in said]


def numbers(said: list[list[Any]]) -> list[float]:
    return [value for one in said for _, own, top in one for value in (own, *(p for _, p in top))]


@pytest.mark.multiprocess
@pytest.mark.parametrize("layout", ["one", "tp2", "pp2"])
def test_two_processes_say_and_score_what_one_does(results: dict[str, Any], layout: str) -> None:
    wanted, found = results["one"], results[layout]
    assert found["ranks_agree"], "every rank of every stage is told the same"
    assert [len(one) for one in found["said"]] == [6, 8, 10]
    assert tokens(found["said"]) == tokens(found["alone"]) == tokens(wanted["alone"])
    assert len({token for one in tokens(found["said"]) for token in one}) > 3
    for key in ("said", "alone", "scores"):
        assert numbers(found[key]) == pytest.approx(numbers(wanted[key]), abs=2e-5)
    assert [len(one) for one in found["scores"]] == [4, 0, 19]
