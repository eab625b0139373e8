from __future__ import annotations

import json

import pytest

from megavlm.platform.cli import main
from megavlm.platform.config import list_recipes, load_recipe

FILE = """
description: a stage alone
sources: {stages: {only: {steps: "our guess: enough", optimizer: {lr: "paper T10"}}}}
stages:
  only:
    train: [decoder]
    mixture: {weights: {text: 1}, sequence_length: 64, packs_per_batch: 2}
    steps: 10
    optimizer: {lr: 1e-4}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "alone.yaml"
    path.write_text(FILE)
    return str(path)


def told(capsys, *arguments):
    assert main(["recipes", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_list_names_every_shipped_recipe_with_its_size(capsys):
    rows = told(capsys, "list")
    assert {name: row["description"] for name, row in rows.items()} == {
        name: load_recipe(name).description for name in list_recipes()
    }
    assert rows["nvlm-d-mini"]["parameters"] > 1e6 and rows["curate-demo"]["parameters"] is None
    assert main(["recipes", "list"]) == 0
    lines = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()}
    assert set(lines) == set(rows)
    assert lines["nvlm-d-mini"] == "1.3M" and lines["nvlm-d-72b"] == "79.4B"


def test_show_prints_origins_and_sources(capsys, recipe):
    values = told(capsys, "show", recipe, "stages.only.precision=fp32")["values"]
    assert values["stages.only.optimizer.lr"] == {"value": 1e-4, "origin": f"file {recipe}", "source": "paper T10"}
    assert values["stages.only.precision"] == {"value": "fp32", "origin": "command line"}
    assert values["stages.only.optimizer.clip"] == {"value": 1.0, "origin": "default"}
    assert main(["recipes", "show", "stages.only.steps=7", recipe]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("stages.only.steps"))
    assert "= 7" in line and "[command line]" in line


@pytest.mark.parametrize(("only", "key"), [("guesses", "stages.only.steps"), ("published", "stages.only.optimizer.lr")])
def test_only_guesses_and_only_what_is_published(capsys, recipe, only, key):
    assert list(told(capsys, "show", recipe, "--only", only)["values"]) == [key]
    assert main(["recipes", "show", recipe, "--only", only]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{key} = ") and load_recipe(recipe).sources[key] in out


def test_what_the_command_line_sets_is_no_longer_what_the_recipe_gave_a_source_for(capsys, recipe):
    values = told(capsys, "show", recipe, "stages.only.steps=7")["values"]
    assert "source" not in values["stages.only.steps"] and "source" in values["stages.only.optimizer.lr"]


def test_show_counts_parameters_by_axis(capsys):
    name = next(name for name in list_recipes() if "model" in load_recipe(name).sections)
    counts = told(capsys, "show", name)["parameters"]
    axes = sum(counts[axis] for axis in ("encoder", "connector", "injection", "decoder"))
    assert counts["exported"] == axes > 0 and counts["total"] == axes + counts["auxiliary"]


def test_diff_tells_where_two_recipes_differ(capsys, recipe, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("base: alone.yaml\nstages: {only: {steps: 20}}")
    assert told(capsys, "diff", recipe, str(other)) == {
        "name": {recipe: "alone", str(other): "other"},
        "stages.only.steps": {recipe: 10, str(other): 20},
    }
    assert main(["recipes", "diff", recipe, recipe]) == 0
    assert capsys.readouterr().out.strip() == "no difference"
