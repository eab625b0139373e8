"""Every recipe that fine-tunes ends with a gate, and what a gate cannot do is told before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megavlm.megatron_mm.training.plan import make_plan
from megavlm.megatron_mm.training.stages import chosen
from megavlm.platform.cli import main
from megavlm.platform.config import load_recipe
from megavlm.platform.config.recipe import list_recipes
from megavlm.platform.errors import ConfigError, InputError

RECIPES = [name for name in list_recipes() if "stages" in load_recipe(name).sections]
LANGUAGE = ["mmlu", "gsm8k", "math", "humaneval"]


def test_there_are_recipes_to_test() -> None:
    some = {"nvlm-d-72b", "eagle-x5-7b-prealign", "eve-7b-hd", "eve-v2-7b", "mmfuser-13b", "nvlm-x-mini"}
    assert some <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_the_gate_is_the_last_stage(name: str) -> None:
    """It judges what is trained last, by a stage in which the decoder was still the backbone's."""
    stages = load_recipe(name).section("stages")
    *trained, last = chosen(stages)
    gate = stages.gates[last]
    assert trained == [each for each in trained if each in stages.root] and gate.judges == trained[-1]
    assert "decoder" in stages[gate.judges].train and gate.gate.max_drop <= 0.02
    run, _, stage = gate.gate.baseline.rpartition(":")
    before = load_recipe(Path(run).name).section("stages") if run else stages
    # `language` of the minis stands for the training of the language model itself
    assert stage == "language" or "decoder" not in before[stage].train
    assert gate.gate.suites == (["text"] if name.endswith("mini") else LANGUAGE)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.gate.judges=other", "which is no earlier stage"),
        ("stages.gate.gate.baseline=sft", "compared with itself"),
        ("stages.gate.gate.baseline=lang", "did you mean 'language'"),
        ("stages.gate.gate.suites=[]", "one and more"),
        ("stages.gate.gate.suites=[mmul]", "unknown suite 'mmul'"),
        ("stages.gate.protocol=nvml", "unknown protocol 'nvml'"),
        ("stages.sft=null", "which is no earlier stage"),
    ],
)
def test_what_a_gate_cannot_do_is_told_first(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as told:
        make_plan(load_recipe("nvlm-d-mini", [override]))
    assert said in f"{told.value}"


def test_a_benchmark_without_data_stops_a_training_before_it_begins(tmp_path: Path) -> None:
    gate = "stages.gate={evaluate: {gsm8k: benchmarks}, gate: {suites: [gsm8k], baseline: language, max_drop: 0.02}}"
    recipe = load_recipe("nvlm-d-mini", [gate, f"data.sets.benchmarks={tmp_path}"])
    line = f"hf download --repo-type dataset openai/gsm8k --local-dir {tmp_path}/openai/gsm8k"
    with pytest.raises(InputError) as told:
        make_plan(recipe)
    assert told.value.fix == line
    assert any(line in note for note in make_plan(recipe, nproc=2, elsewhere=True).notes)


def test_the_dry_run_lists_what_would_be_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", "--suite", "vl", "--protocol", "nvlm", "--data", str(tmp_path), "--dry-run"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["benchmarks"]
    assert len(told) == 17 and all(row["missing"] and row["fix"] and row["prompt"] and row["metric"] for row in told)
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert all(row["fix"] in shown and row["data"] in shown for row in told)


def test_a_missing_benchmark_is_an_error_and_no_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--engine", "hf", "--suite", "docvqa", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["eval", str(tmp_path), *words]) == 2
    assert f"--local-dir {tmp_path}" in capsys.readouterr().err and not (tmp_path / "out").exists()
