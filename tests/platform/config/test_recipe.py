from __future__ import annotations

import json

import pytest

from megavlm.platform.cli import main
from megavlm.platform.config import list_recipes, load_recipe
from megavlm.platform.config.tree import leaves
from megavlm.platform.errors import ConfigError

TOY = """
seed: 3
toy:
  inner: {depth: 2}
  encoder: {name: small, rate: 1e-4}
  extras: [large, small]
"""
PARTS = "toy: {encoder: {name: mixture, parts: [{name: small, widht: 1}]}}"
STAGES = """
stages:
  first:
    train: [decoder]
    mixture: {weights: {text: 1}, sequence_length: 64, packs_per_batch: 2}
    steps: 10
    optimizer: {lr: 1e-4}
  second:
    after: [first]
    train: [decoder]
    mixture: {weights: {text: 1}, sequence_length: 64, packs_per_batch: 2}
    steps: 10
    optimizer: {lr: 1e-4}
"""


def test_every_value_knows_where_it_comes_from(write):
    base = write(TOY, "under.yaml")
    mine = write("base: under.yaml\ntoy: {inner: {depth: 3}}")
    recipe = load_recipe(mine, ["toy.flag=true", "toy.encoder.width=9"])
    assert recipe.tree["toy"]["encoder"] == {"name": "small", "width": 9, "rate": 1e-4}
    assert recipe.name == "mine" and recipe.seed == 3
    assert recipe.origins == {
        "name": f"file {mine}",
        "seed": f"file {base}",
        "toy.inner.depth": f"file {mine}",
        "toy.inner.ratio": "default",
        "toy.encoder.name": f"file {base}",
        "toy.encoder.width": "command line",
        "toy.encoder.rate": f"file {base}",
        "toy.extras.0.name": f"file {base}",
        "toy.extras.0.width": "default",
        "toy.extras.0.layers": "default",
        "toy.extras.1.name": f"file {base}",
        "toy.extras.1.width": "default",
        "toy.extras.1.rate": "default",
        "toy.flag": "command line",
        "toy.note": "default",
    }


def test_what_is_replaced_or_removed_keeps_no_origin(write):
    write(TOY, "under.yaml")
    mine = write("base: under.yaml\ntoy: {encoder: {name: large}}")
    recipe = load_recipe(mine, ["toy.inner.depth=null"])
    assert recipe.tree["toy"]["encoder"] == {"name": "large", "width": 64, "layers": 2}
    assert recipe.origins["toy.encoder.width"] == recipe.origins["toy.inner.depth"] == "default"
    assert recipe.tree["toy"]["inner"]["depth"] == 1


def test_a_recipe_may_stand_on_a_shipped_one(write):
    shipped = next(iter(list_recipes()))
    recipe = load_recipe(write(f"base: {shipped}\nseed: 99"))
    assert recipe.seed == 99
    assert f"recipe {shipped}" in recipe.origins.values()
    assert {**load_recipe(shipped).tree, "name": "mine", "seed": 99} == recipe.tree


@pytest.mark.parametrize(
    ("text", "overrides", "where", "fix"),
    [
        ("tooy: {encoder: small}", [], "tooy  [file", "did you mean 'toy'?"),
        (TOY, ["sead=4"], "sead  [command line]", "did you mean 'seed'?"),
        (TOY, ["toy.flagg=true"], "toy.flagg  [command line]", "did you mean 'flag'?"),
        (TOY, ["toy.inner.dept=2"], "toy.inner.dept  [command line]", "did you mean 'depth'?"),
        (TOY, ["toy.inner.dept.x=2"], "toy.inner.dept  [command line]", "did you mean 'depth'?"),
        (TOY, ["toy.encoder.widht=2"], "toy.encoder.widht  [command line]", "did you mean 'width'?"),
        (TOY, ["toy.encoder=smal"], "toy.encoder  [command line]", "did you mean 'small'?"),
        (TOY.replace("rate: 1e-4", "rat: 1"), [], "toy.encoder.rat  [file", "did you mean 'rate'?"),
        (PARTS, [], "toy.encoder.parts.0.widht  [file", "did you mean 'width'?"),
        (STAGES, ["stages.second.stepz=1"], "stages.second.stepz  [command line]", "did you mean 'steps'?"),
        (STAGES, ["stages.second.optimizer.rl=1"], "stages.second.optimizer.rl  [command line]", "did you mean 'lr'?"),
        (STAGES.replace("weights", "weight"), [], "stages.first.mixture.weight  [file", "did you mean 'weights'?"),
    ],
)  # fmt: skip
def test_an_unknown_key_anywhere_exits_2_says_where_and_proposes(write, capsys, text, overrides, where, fix):
    assert main(["recipes", "show", write(text), *overrides, "--json"]) == 2
    told = json.loads(capsys.readouterr().out)["error"]
    assert told["what"].startswith("unknown ")
    assert told["where"].startswith(where)
    assert fix in told["fix"]


@pytest.mark.parametrize(
    ("overrides", "what", "where"),
    [
        (["toy.inner.depth=deep"], "valid integer", "toy.inner.depth  [command line]"),
        (["toy.inner.depth=0"], "depth 0 is no depth", "toy.inner.depth  [command line]"),
        (["toy.encoder.rate=fast"], "valid number", "toy.encoder.rate  [command line]"),
        (["toy.encoder=null"], "'encoder' is required", "toy.encoder"),
        (["toy.encoder={width: 3}", "toy.encoder.name=null"], "needs a 'name'", "toy.encoder"),
        (["toy.encoder=[small]"], "needs a 'name'", "toy.encoder  [command line]"),
        (["seed=1e-4"], "valid integer", "seed  [command line]"),
        (["name=a/b"], "should match pattern", "name  [command line]"),
        (["base=other"], "cannot set a recipe's base", "base=other"),
        (["toy=3"], "valid dictionary", "toy  [command line]"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(write, overrides, what, where):
    with pytest.raises(ConfigError) as error:
        load_recipe(write(TOY), overrides)
    assert what in error.value.what and error.value.where.startswith(where)


def test_the_stage_that_is_wrong_is_the_one_named(write):
    text = STAGES.replace("steps: 10", "steps: 10\n    parallel: {tp: 2, sequence_parallel: true}")
    with pytest.raises(ConfigError) as error:
        load_recipe(write(text), ["stages.second.parallel.tp=1"])
    assert error.value.where.startswith("stages.second.parallel.sequence_parallel  [file")


def test_a_key_given_twice_exits_2(write, capsys):
    assert main(["recipes", "show", write("seed: 1\nseed: 2")]) == 2
    assert "'seed' is given twice" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["- a", "just text", "base: [a]", "1: x", "name: [a]"])
def test_what_is_no_recipe_is_refused(write, text):
    with pytest.raises(ConfigError):
        load_recipe(write(text))


def test_a_circle_of_bases_is_refused(write):
    write("base: ../deep/two.yaml", "deep/one.yaml")
    two = write("base: ../deep/one.yaml", "deep/two.yaml")
    with pytest.raises(ConfigError, match="its own base"):
        load_recipe(two)


def test_a_base_is_looked_for_beside_the_file_that_names_it(write, monkeypatch, tmp_path):
    write(TOY, "deep/under.yaml")
    mine = write("base: under.yaml", "deep/mine.yaml")
    monkeypatch.chdir(tmp_path)
    assert load_recipe(mine).seed == 3


def test_unknown_recipes_and_missing_files(tmp_path):
    shipped = next(iter(list_recipes()))
    with pytest.raises(ConfigError) as error:
        load_recipe(shipped + "x")
    assert error.value.fix == f"did you mean '{shipped}'?"
    with pytest.raises(ConfigError, match="no recipe file"):
        load_recipe(str(tmp_path / "nothing.yaml"))


def test_a_section_that_is_not_there(write):
    with pytest.raises(ConfigError, match="has no section 'model'"):
        load_recipe(write(TOY)).section("model")


def test_a_resolved_recipe_resolves_to_itself(write):
    from megavlm.platform.runs.resolved import to_yaml

    recipe = load_recipe(write(TOY), ["toy.encoder.width=9"])
    again = load_recipe(write(to_yaml(recipe.tree, recipe.origins), "config.yaml"))
    assert again.tree == recipe.tree


def test_a_source_goes_with_the_value_that_it_is_of(write):
    """What a higher layer sets is not what the layer below found in a paper."""
    base = write("sources: {seed: paper T1, toy: {encoder: {width: paper T2}}}\n" + TOY, "base.yaml")
    assert load_recipe(base).sources == {"seed": "paper T1", "toy.encoder.width": "paper T2"}
    assert load_recipe(base, ["toy.encoder.width=9"]).sources == {"seed": "paper T1"}
    over = write(
        "base: base.yaml\nsources: {seed: 'our guess: why not'}\nseed: 3\ntoy: {encoder: {width: 9}}", "over.yaml"
    )
    assert load_recipe(over).sources == {"seed": "our guess: why not"}
    removed = write("sources: {toy: {encoder: {rate: paper T2}}}\n" + TOY, "removed.yaml")
    assert load_recipe(removed, ["toy.encoder={name: large}"]).sources == {}


@pytest.mark.parametrize("name", list(list_recipes()))
def test_every_shipped_recipe_resolves_with_an_origin_for_every_value(name):
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.description
    assert set(recipe.origins) == set(dict(leaves(recipe.tree)))
    assert set(recipe.origins.values()) <= {"default"} | {f"recipe {other}" for other in list_recipes()}
    assert set(recipe.sources) <= set(recipe.origins)
    if recipe.parameters:
        counted = recipe.section("model").parameter_counts()
        assert {axis: counted[axis] for axis in recipe.parameters} == recipe.parameters
