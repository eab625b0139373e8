"""The shipped recipes resolve, name their sources, and load nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from megavlm.data_curation.verb import parse_tasks
from megavlm.platform.config import load_recipe
from megavlm.platform.config.tree import leaves
from megavlm.platform.errors import InputError

RECIPES = ("curate-demo", "curate-laion-mini")


@pytest.mark.parametrize("name", RECIPES)
def test_every_source_names_a_value_of_the_recipe(name):
    recipe = load_recipe(name)
    assert set(recipe.sources) <= {key for key, _ in leaves(recipe.tree)}


def test_the_published_recipe_has_eves_figures_and_an_origin_for_every_choice():
    recipe = load_recipe("curate-laion-mini")
    stages = recipe.section("curation").stages
    assert stages["filter"].min_side == 449, "higher than 448"
    assert stages["cluster"].clusters * stages["select"].nearest == 15_000_000
    assert stages["embed"].embedder.model == "EVA02-L-14"
    chosen = [key for key in recipe.origins if key.startswith("curation.stages") and recipe.origins[key] != "default"]
    plain = {"embed.embedder.batch_size", "export.samples_per_shard", "deduplicate.min_hash_quality"}
    unsourced = {key.removeprefix("curation.stages.") for key in chosen if key not in recipe.sources}
    assert unsourced <= plain | {"ingest", "assign"}


def test_resolving_recipes_loads_neither_torch_nor_faiss():
    code = (
        "import sys, json; from megavlm.platform.config import load_recipe;"
        f"[load_recipe(n) for n in {RECIPES}];"
        "print(json.dumps([m for m in ('torch', 'faiss', 'zarr', 'timm') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == []


def test_tasks_are_numbers_and_ranges():
    assert parse_tasks("0-2,5") == [0, 1, 2, 5] and parse_tasks("7") == [7]
    for wrong in ("", "a", "1-", "-1", "1,,2"):
        with pytest.raises(InputError):
            parse_tasks(wrong)
