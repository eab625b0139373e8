"""Every shipped recipe resolves, validates, and builds on the meta device with the parameter counts it states."""

import pytest
import torch

from megavlm.megatron_mm.config import AXES
from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.model import build_model
from megavlm.megatron_mm.training.plan import make_plan
from megavlm.platform.config import list_recipes, load_recipe

RECIPES = list(list_recipes())
WITH_MODEL = [name for name in RECIPES if "model" in load_recipe(name).sections]


@pytest.mark.parametrize("name", RECIPES)
def test_it_resolves_and_says_where_every_value_comes_from(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.sections and recipe.description
    assert f"recipe {name}" in recipe.origins.values()
    assert set(recipe.origins.values()) <= {"default", *(f"recipe {other}" for other in RECIPES)}
    assert all(key in recipe.origins for key in recipe.sources)


def test_there_is_a_model_to_build() -> None:
    assert "nvlm-d-mini" in WITH_MODEL


@pytest.mark.parametrize("name", WITH_MODEL)
def test_it_can_be_planned(name: str) -> None:
    recipe = load_recipe(name)
    plan = make_plan(recipe)
    total = recipe.section("model").parameter_counts()["total"]
    assert [stage.parameters for stage in plan.stages] == [total] * len(plan.stages)


@pytest.mark.parametrize("name", WITH_MODEL)
def test_it_builds_with_the_counts_it_states(name: str, one_process: BuildContext) -> None:
    recipe = load_recipe(name)
    with torch.device("meta"):
        built = build_model(recipe.section("model"), one_process)
    counts = {axis: sum(p.numel() for _, p in built.axis(axis)) for axis in AXES}
    assert recipe.parameters == counts | {"total": sum(counts.values())}
