"""A rank that is slow is named in the metrics, and one that stops answering by those that wait for it."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from ranks import RankFailed, run_on_ranks

from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.training.packs import ensure_packs
from megavlm.megatron_mm.training.stalls import WAITING, suspects
from megavlm.platform.config import load_recipe
from megavlm.platform.runs import RunFolder

WORKER = Path(__file__).with_name("stall_worker.py")


@pytest.mark.multiprocess
def test_a_slow_rank_is_named_and_one_that_stops_answering_suspected(recipe: Path, tmp_path: Path) -> None:
    words = ["parallel.tp=1", "train=[encoder,connector,decoder]", "mixture.weights={vqa: 1}", "steps=8"]
    found = load_recipe(str(recipe), [f"stages.language.{word}" for word in [*words, "checkpoint.every=2"]])
    run = RunFolder.create(tmp_path / "run", found.tree, found.origins, [])
    ensure_packs(run, StageData.of(found, "language"))
    attempt = run.new_attempt()
    with pytest.raises(RankFailed, match="a rank does not answer"):
        run_on_ranks(WORKER, 2, run.root, seconds=240)

    lines = run.metrics()
    assert [line["slowest_rank"] for line in lines[1:]] == [1, 1, 1, 1]
    assert statistics.median(line["slowness"] for line in lines[1:]) > 1.3  # over the median of two, which is the mean
    (told,) = [event for event in attempt.events() if event["kind"] == "failed" and event["rank"] == 0]
    assert "a rank does not answer" in told["what"]
    assert "suspected: rank 1 on " in told["what"] and "rank 0" not in told["what"]
    assert "after step 4" in told["fix"]


def test_suspected_are_those_that_do_not_wait_and_are_furthest_behind(tmp_path: Path) -> None:
    attempt = RunFolder.create(tmp_path / "run", {}, {}, []).new_attempt()
    for rank, (step, doing) in enumerate([(7, WAITING), (6, "step"), (7, "step"), (6, "save")]):
        attempt.heartbeat(rank, step, doing)
    assert "rank 1 on" in suspects(attempt) and "rank 3 on" in suspects(attempt)
    assert "rank 2" not in suspects(attempt) and "rank 0 " not in suspects(attempt)
    for rank in range(4):
        attempt.heartbeat(rank, 7, WAITING)
    assert suspects(attempt) == "every rank waited for another one"
