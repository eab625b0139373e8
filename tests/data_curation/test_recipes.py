"""The shipped recipes: published figures, an origin for every choice, twins that differ only where they say so."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from megavlm.data_curation.config import CurationStages
from megavlm.data_curation.verb import parse_tasks
from megavlm.platform.cli import main
from megavlm.platform.config import list_recipes, load_recipe
from megavlm.platform.config.tree import leaves
from megavlm.platform.errors import ConfigError, InputError

RECIPES = [name for name in list_recipes() if "curation" in load_recipe(name).sections]
TWINS = {
    "eve-laion-15m": "eve-laion-mini",
    "densefusion-1m": "densefusion-mini",
    "eve-sa1b-11m": "eve-sa1b-mini",
    "eve-openimages-7m": "eve-openimages-mini",
    "eve-cap33m": "eve-cap-mini",
}
PUBLISHED = ["eve-laion-links", "densefusion-links", *TWINS]

# What the papers state: recipe -> key under curation.stages -> figure.
FIGURES = {
    "eve-laion-links": {"links.rules.min_side": 449},
    "densefusion-links": {"links.rules.min_side": 448},
    "eve-laion-15m": {"filter.min_side": 449, "cluster.clusters": 50_000, "select.nearest": 300},
    "densefusion-1m": {
        "filter.min_side": 448,
        "cluster.clusters": 50_000,
        "deduplicate.epsilon": 0.4,
        "select.nearest": 20,
    },
    "eve-sa1b-11m": {"filter.min_side": 449},
    "eve-openimages-7m": {"filter.min_side": 449},
    "eve-cap33m": {"filter.min_side": 449},
}
ORDER = {
    "eve-laion-links": "links",
    "densefusion-links": "links",
    "eve-laion-15m": "ingest filter embed cluster assign deduplicate select recaption check_captions export",
    "densefusion-1m": "ingest filter embed cluster assign deduplicate select recaption export",
    "eve-sa1b-11m": "ingest filter recaption check_captions export",
    "eve-openimages-7m": "ingest filter recaption check_captions export",
    "eve-cap33m": "ingest filter decontaminate export",
}
# Choices that say where and how fast, and not which images stay.
PLAIN = ("batch_size", "samples_per_shard", "output", "gpus", "path", "kind")
# All in which a twin may differ, below `curation`.
DIFFER = {
    "sizes": {"stages.cluster.clusters", "stages.cluster.iterations", "stages.select.nearest"}
    | {"stages.filter.min_side", "stages.recaption.parameters.max_tokens", "stages.export.samples_per_shard"},
    "models": {f"stages.embed.embedder.{key}" for key in ("name", "model", "pretrained", "resize", "pooling")}
    | {"stages.embed.embedder.image_size", "stages.embed.embedder.batch_size", "stages.recaption.model"},
    "random features": {"stages.cluster.center"}
    | {f"stages.deduplicate.{key}" for key in ("hash_radius", "min_hash_quality", "epsilon", "confirm_radius")},
    "random captions": {"stages.check_captions.rules.1.name"},
}
ONLY_IN_FULL_OR_MINI = ("source.", "executor.", "stages.recaption.server", "stages.recaption.transformers",
                        "stages.decontaminate.against.")  # fmt: skip


def chosen(name: str) -> set[str]:
    """The keys that a recipe, or one under it, writes down."""
    return {key for key, origin in load_recipe(name).origins.items() if origin != "default"}


@pytest.mark.parametrize("name", RECIPES)
def test_every_source_names_a_value_of_the_recipe(name):
    recipe = load_recipe(name)
    assert set(recipe.sources) <= {key for key, _ in leaves(recipe.tree)}
    assert all(
        text.startswith(("paper ", "published ", "benchmarks/", "our guess: ")) for text in recipe.sources.values()
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_figures_are_the_papers_and_say_so(name):
    recipe = load_recipe(name)
    values = dict(leaves(recipe.tree))
    for key, figure in FIGURES[name].items():
        assert values[f"curation.stages.{key}"] == figure
        assert recipe.sources[f"curation.stages.{key}"].startswith("paper ")
    assert " ".join(recipe.section("curation").stages.root) == ORDER[name]


def test_what_is_selected_adds_up():
    eve, dense = (load_recipe(name).section("curation").stages for name in ("eve-laion-15m", "densefusion-1m"))
    assert eve["cluster"].clusters * eve["select"].nearest == 15_000_000
    assert dense["cluster"].clusters * dense["select"].nearest == 1_000_000
    assert 14_000_000 / dense["cluster"].clusters < eve["select"].nearest, "DenseFusion's 0.4 leaves too few for EVE"


@pytest.mark.parametrize("name", [*PUBLISHED, *TWINS.values()])
def test_every_choice_that_decides_an_outcome_has_an_origin(name):
    recipe = load_recipe(name)
    decisive = {key for key in chosen(name) if key.startswith(("curation.stages", "curation.source"))}
    assert {key for key in decisive - set(recipe.sources) if not key.endswith(PLAIN)} == set()


def differences(full: str, mini: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Keys as `recipes diff` finds them."""
    assert main(["recipes", "diff", full, mini, "--json"]) == 0
    return set(json.loads(capsys.readouterr().out)) - {"name"}


@pytest.mark.parametrize(("full", "mini"), TWINS.items())
def test_a_twin_differs_in_sizes_models_and_source_alone(full, mini, capsys):
    found = {key.removeprefix("curation.") for key in differences(full, mini, capsys)}
    known = set().union(*DIFFER.values())
    assert {key for key in found if not key.startswith(ONLY_IN_FULL_OR_MINI)} <= known
    assert list(load_recipe(full).section("curation").stages.root) == list(
        load_recipe(mini).section("curation").stages.root
    )


@pytest.mark.parametrize(("full", "mini"), TWINS.items())
def test_a_twin_claims_no_published_figure_that_it_changed(full, mini, capsys):
    theirs, ours = load_recipe(full).sources, load_recipe(mini).sources
    assert [key for key in differences(full, mini, capsys) if key in theirs and ours.get(key) == theirs[key]] == []
    assert "no meaning" in load_recipe(mini).description


def test_the_guesses_can_be_listed(capsys):
    assert main(["recipes", "show", "eve-laion-15m", "--only", "guesses", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["values"]
    assert {"curation.stages.deduplicate.epsilon", "curation.stages.recaption.model"} <= set(shown)
    assert "curation.stages.select.nearest" not in shown


def test_resolving_recipes_loads_neither_torch_nor_faiss():
    code = (
        "import sys, json; from megavlm.platform.config import load_recipe;"
        f"[load_recipe(n) for n in {RECIPES}];"
        "print(json.dumps([m for m in ('torch', 'faiss', 'zarr', 'timm', 'transformers') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == []


def test_tasks_are_numbers_and_ranges():
    assert parse_tasks("0-2,5") == [0, 1, 2, 5] and parse_tasks("7") == [7]
    for wrong in ("", "a", "1-", "-1", "1,,2"):
        with pytest.raises(InputError):
            parse_tasks(wrong)


def test_nobody_judges_after_the_export():
    """What is appended on a command line stands last, and would be done for nothing."""
    without = load_recipe("text-sft-mini", ["curation.stages.text_deduplicate=null"]).tree["curation"]["stages"]
    stages = {**without, "text_deduplicate": {}}
    with pytest.raises(ConfigError, match="text_export' before it has copied them already"):
        CurationStages.parse(stages, where="curation.stages")
