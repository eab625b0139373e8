"""A plan's page: every byte, second and rank that was planned or traced is in its pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.planning.contracts import Estimate, StepTime
from megavlm.megatron_mm.planning.estimate import Layout, task_of
from megavlm.megatron_mm.planning.hardware import find_gpu
from megavlm.megatron_mm.planning.page import GIB, SHOWN, causes, memory, peaks, write_page
from megavlm.megatron_mm.planning.search import Found
from megavlm.megatron_mm.planning.told import StagePlan
from megavlm.megatron_mm.tracing.contracts import Peak, RankTrace
from megavlm.platform.config import load_recipe
from megavlm.platform.report.charts import SERIES


def row(layout: str) -> Estimate:
    task = task_of(load_recipe("nvlm-d-mini", [f"stages.sft.parallel={layout}"]), "sft")
    return task.estimate(find_gpu("h100"), 3, task.layout)


@pytest.fixture(scope="module")
def piped() -> Estimate:
    return row("{tp: 1, pp: 3}")


def trace(rank: int, stage: int, gib: int) -> RankTrace:
    peak = Peak("schedule", gib * GIB, {"weights": GIB, "activations": (gib - 1) * GIB}, (("layers.*.mlp", GIB),))
    return RankTrace(rank, stage, 10, {"weights": GIB}, (peak,), 1.0)


def planned(origin: str, own: Estimate | None, rows: list[Estimate], traces: tuple[RankTrace, ...]) -> StagePlan:
    return StagePlan(
        stage="sft",
        layout=Layout(Parallel(), "none"),
        origin=origin,
        own=own,
        refused=None,
        found=Found(rows, 9, {"memory": 8}),
        top=1,
        saves=None,
        traces=traces,
    )


def test_bars_of_memory_add_up_to_each_stage_with_the_fullest_traced_rank_under_it(piped: Estimate) -> None:
    bars = memory(piped, [trace(0, 0, 3), trace(1, 0, 5), trace(2, 2, 4)])
    assert list(bars) == ["stage 0", "stage 0, traced", "stage 1", "stage 2", "stage 2, traced"]
    for rank in piped.ranks:
        assert sum(bars[f"stage {rank.stage}"].values()) * GIB == pytest.approx(rank.total)
    assert bars["stage 0, traced"] == {"weights": 1.0, "activations": 4.0}


def test_every_second_of_a_step_is_in_one_cause_and_each_has_a_colour_of_its_own(piped: Estimate) -> None:
    fields = [field for group in SHOWN.values() for field in group]
    assert sorted(fields) == sorted(field.name for field in dataclasses.fields(StepTime))
    assert len(SHOWN) <= len(SERIES)
    assert sum(causes(piped).values()) == pytest.approx(piped.time.total)


def test_a_page_shows_layouts_memory_pipeline_and_trace(piped: Estimate, tmp_path: Path) -> None:
    alone = row("{tp: 1}")
    traces = (trace(0, 0, 3), trace(2, 2, 4))
    plan = planned("assumed <so>", piped, [alone], traces)
    html = write_page(tmp_path / "plan.html", "nvlm-d-mini", [plan]).read_text()
    for part in ("assumed &lt;so&gt;", "(the recipe)", "stage 2, traced", "h100: 78 GiB", "layers.*.mlp", ">backward<"):
        assert part in html, part
    assert html.count(">forward<") == 1  # the fastest has no pipeline
    assert peaks(traces) == [{"cause": "layers.*.mlp", "rank 0": 1.0, "rank 2": 1.0}]


def test_where_no_layout_is_possible_there_is_a_page_all_the_same(tmp_path: Path) -> None:
    plan = planned("assumed", None, [], ())
    assert "assumed" in write_page(tmp_path / "plan.html", "nvlm-d-mini", [plan]).read_text()
