"""docs/plans.md: every full-size recipe is there, with what `estimate` says now, beside times worked out by hand."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

from megavlm.megatron_mm.planning.published import Plan, Row, plans, row_of
from megavlm.platform.config import list_recipes, load_recipe
from megavlm.platform.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "plans.md"


@cache
def rows() -> list[Row]:
    return [row_of(plan) for plan in plans()]


@cache
def full_size() -> set[str]:
    """Recipes of models above a billion parameters."""
    models = {name: load_recipe(name).sections.get("model") for name in list_recipes()}
    return {name for name, model in models.items() if model and model.parameter_counts()["total"] > 1e9}


def test_every_stage_of_every_full_size_recipe_has_a_plan():
    planned = {(plan.recipe, stage) for plan in plans() for stage in plan.stages}
    for name in full_size():
        for stage in load_recipe(name).section("stages").root:
            assert (name, stage) in planned


def test_the_page_says_what_is_estimated_now():
    spec = importlib.util.spec_from_file_location("planner_plans", ROOT / "benchmarks" / "planner_plans.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert PAGE.read_text() == script.page(rows()), "run benchmarks/planner_plans.py"
    assert full_size() <= set(re.findall(r"^\| ([\w-]+) \|", PAGE.read_text(), re.MULTILINE))


def test_every_recipe_fits_the_machines_that_it_was_published_for():
    assert {row.plan.name: row.too_much for row in rows() if row.too_much} == {}


def test_errors_are_ours_over_what_was_published():
    compared = {row.plan.name: row for row in rows() if row.error is not None}
    eve = compared["eve-7b"]
    assert eve.error == pytest.approx(sum(each.time.total * each.steps for each in eve.estimates) / (9 * 86400) - 1)
    table = compared["NVLM table 3, D"]
    assert table.error == pytest.approx(table.estimates[0].time.total / 8.885 - 1)
    assert len(compared) >= 9


def test_table_3_is_planned_as_it_was_run():
    """256 sequences of 7 tiles, and as many positions as the table says, by tensor parallelism 8 on 128 GPUs."""
    jobs = {row.plan.title[-1]: row.estimates[0].job for row in rows() if "table 3" in row.plan.name}
    assert {name: job.load.of.positions for name, job in jobs.items()} == {"X": 1024, "H": 1280, "D": 2816}
    for job in jobs.values():
        assert (job.load.packs, job.load.of.tiles, job.dp * job.micro_batches) == (256, 7, 256)
        assert (job.parallel.tp, job.world) == (8, 128)


@pytest.mark.parametrize("told", [{"hours": 2}, {"time": "a paper"}, {"hours": 2, "step_seconds": 1, "time": "twice"}])
def test_a_time_without_its_source_is_refused(told):
    plan = {"recipe": "eve-7b", "stages": ["sft"], "gpu": "h100", "gpus": 8, "hardware": "x"}
    with pytest.raises(ConfigError, match="time"):
        Plan.parse(plan | told, where="plans.0")
