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


def test_list_names_every_shipped_recipe(capsys):
    assert told(capsys, "list") == {name: load_recipe(name).description for name in list_recipes()}
    assert main(["recipes", "list"]) == 0
    assert all(name in capsys.readouterr().out for name in list(list_recipes())[:1])


def test_show_prints_origins_and_sources(capsys, recipe):
    values = told(capsys, "show", recipe, "stages.only.precision=fp32")["values"]
    assert values["stages.only.optimizer.lr"] == {"value": 1e-4, "origin": f"file {recipe}", "source": "paper T10"}
    assert values["stages.only.precision"] == {"value": "fp32", "origin": "command line"}
    assert values["stages.only.optimizer.clip"] == {"value": 1.0, "origin": "default"}
    assert main(["recipes", "show", "stages.only.steps=7", recipe]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("stages.only.steps"))
    assert "= 7" in line and "[command line; our guess: enough]" in line


def test_only_guesses(capsys, recipe):
    assert list(told(capsys, "show", recipe, "--only", "guesses")["values"]) == ["stages.only.steps"]


def test_show_counts_parameters_by_axis(capsys):
    name = next(name for name in list_recipes() if "model" in load_recipe(name).sections)
    counts = told(capsys, "show", name)["parameters"]
    assert counts.pop("total") == sum(counts.values()) > 0


def test_diff_tells_where_two_recipes_differ(capsys, recipe, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("base: alone.yaml\nstages: {only: {steps: 20}}")
    assert told(capsys, "diff", recipe, str(other)) == {
        "name": {recipe: "alone", str(other): "other"},
        "stages.only.steps": {recipe: 10, str(other): 20},
    }
    assert main(["recipes", "diff", recipe, recipe]) == 0
    assert capsys.readouterr().out.strip() == "no difference"
