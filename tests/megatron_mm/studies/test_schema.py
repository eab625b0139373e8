"""A study that cannot be right is refused with the value, the place and the fix, before anything is trained."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megavlm.megatron_mm.injection import INJECTIONS
from megavlm.megatron_mm.studies.find import find_study, list_studies
from megavlm.megatron_mm.studies.runs import all_runs
from megavlm.megatron_mm.studies.schema import Study
from megavlm.megatron_mm.studies.verb import run_main
from megavlm.platform.errors import ConfigError

Write = Callable[[dict[str, Any]], Path]


def refused(tree: dict[str, Any], write: Write, tmp_path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as error:
        run_main([str(write(tree)), "--out", str(tmp_path / "out"), "--dry-run"])
    assert not (tmp_path / "out").exists()
    return error.value


WRONG: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "unknown key": ({"qestion": "?"}, "'qestion'", "tiny.yaml", "question"),
    "unknown key of a variant": ({"variants": [{"nmae": "a"}]}, "'nmae'", "variants.0.nmae", "name"),
    "unknown key of a score": ({"scores": {"x": {"suit": "vqa", "stage": "sft"}}}, "'suit'", "scores.x.suit", "suite"),
    "no variant": ({"variants": []}, "nowhere", "variants", "grid"),
    "variants and grid": ({"grid": {"seed": [1, 2]}}, "twice", "variants", "grid"),
    "grid without values": ({"variants": [], "grid": {"seed": []}}, "'seed'", "grid.seed", "list"),
    "one name twice": ({"variants": [{"name": "a"}, {"name": "a"}]}, "'a'", "variants", "own name"),
    "a name that leaves the folder": ({"variants": [{"name": "../a"}]}, "../a", "variants.0.name", ""),
    "one recipe twice": ({"variants": [{"name": "a"}, {"name": "b"}]}, "'a' and 'b'", "variants.b", "leave one out"),
    "no such override": (
        {"variants": [{"name": "a", "overrides": ["stages.sft.stpes=3"]}]}, "'stpes'", "variant 'a'", "steps",
    ),
    "a value that cannot be": (
        {"variants": [{"name": "a", "overrides": ["stages.sft.steps=-3"]}]}, "-3", "stages.sft.steps", "",
    ),
    "not an override": ({"variants": [{"name": "a", "overrides": ["steps"]}]}, "'steps'", "variant 'a'", "KEY"),
    "no such recipe": ({"recipe": "nvlm-d-mina"}, "nvlm-d-mina", "variant 'one'", "nvlm-d-mini"),
    "no such stage": ({"stages": ["language", "stf"]}, "'stf'", "stages", "sft"),
    "a stage without the one before": ({"stages": ["sft"]}, "'language'", "stages.sft", ""),
    "a score of no stage": ({"scores": {"x": {"stage": "tfs", "suite": "vqa"}}}, "'tfs'", "variant 'one'", "sft"),
    "a suite that is not evaluated": (
        {"scores": {"x": {"stage": "language", "suite": "vqa"}}}, "'vqa'", "scores.x.suite", "stages.language.evaluate",
    ),
    "a blind score": (
        {"scores": {"x": {"stage": "sft", "suite": "vqa", "blind": True}}}, "blind", "scores.x", "stages.sft.blind",
    ),
    "suite and metric": (
        {"scores": {"x": {"stage": "sft", "suite": "vqa", "metric": "loss"}}}, "both", "scores.x", "either",
    ),
    "kind of a metric": (
        {"scores": {"x": {"stage": "sft", "metric": "loss", "kind": "a"}}}, "kind", "scores.x", "leave",
    ),
    "no score": ({"scores": {}}, "scores", "scores", "at least one"),
    "scores as a list": ({"scores": ["vqa"]}, "['vqa']", "scores", "NAME"),
    "no such reference": ({"reference": "tow"}, "'tow'", "reference", "'two'"),
    "a seed twice": ({"seeds": [1, 1]}, "1", "seeds", "once"),
    "no such quantity": ({"equal": ["samplse"]}, "samplse", "equal", ""),
    "a crooked published table": (
        {"published": [{"title": "t", "source": "s", "columns": ["a", "b"], "rows": {"r": [1]}}]},
        "'r' has 1", "published.0.rows.r", "null",
    ),
    "no such executor": ({"executor": {"name": "lokal"}}, "'lokal'", "", "local"),
    "unequal samples": (
        {"variants": [{"name": "one"}, {"name": "more", "overrides": ["stages.sft.steps=5"]}]},
        "one 42, more 48", "equal", "steps",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_study_that_cannot_be_is_refused(
    case: str, study_tree: dict[str, Any], write_study: Write, tmp_path: Path
) -> None:
    changes, what, where, fix = WRONG[case]
    error = refused(study_tree | changes, write_study, tmp_path)
    assert what in error.what and where in (error.where or "") and fix in (error.fix or "")


def test_an_unknown_study_and_an_unknown_variant_name_the_nearest(
    study_tree: dict[str, Any], write_study: Write
) -> None:
    with pytest.raises(ConfigError, match="nvlm-tag'") as error:
        find_study("nvlm-tag")
    assert error.value.fix == "did you mean 'nvlm-tags'?"
    with pytest.raises(ConfigError, match="unknown variant 'on'") as error:
        run_main([str(write_study(study_tree)), "--variant", "on", "--dry-run"])
    assert "'one'" in str(error.value.fix)


def test_a_grid_is_every_combination() -> None:
    tree = {"question": "?", "recipe": "r", "scores": {"loss": {"stage": "a", "metric": "loss"}}}
    study: Study = Study.parse(
        tree | {"name": "g", "grid": {"stages.a.steps": [5, 10], "model.x": ["p", {"name": "q r"}]}}
    )
    assert [(row.name, row.overrides) for row in study.rows()] == [
        ("steps-5_x-p", ["stages.a.steps=5", 'model.x="p"']),
        ("steps-5_x-q-r", ["stages.a.steps=5", 'model.x={"name": "q r"}']),
        ("steps-10_x-p", ["stages.a.steps=10", 'model.x="p"']),
        ("steps-10_x-q-r", ["stages.a.steps=10", 'model.x={"name": "q r"}']),
    ]


def test_the_dry_run_tells_what_each_training_would_be(
    study_tree: dict[str, Any], write_study: Write, tmp_path: Path, told: Callable[[], Any]
) -> None:
    words = [str(write_study(study_tree)), "--out", str(tmp_path / "out"), "--dry-run", "--json"]
    assert run_main([*words, "seeds=[4,7]", "--set", "stages.sft.steps=5"]) == 0
    runs = told()["runs"]
    assert [(run["variant"], run["seed"]) for run in runs] == [("one", 4), ("two", 4), ("one", 7), ("two", 7)]
    assert all(run["samples"] == 3 * 6 + 5 * 6 and run["stages"] == {"language": 3, "sft": 5} for run in runs)
    # the text of the language stage is the same, whatever tiles come later; that of another seed is not
    assert [run["taken_over"] for run in runs] == [{}, {"language": "one, seed 4"}, {}, {"language": "one, seed 7"}]
    assert "seed=7" in runs[3]["command"] and FEW in runs[2]["command"] and FEW not in runs[3]["command"]
    assert not (tmp_path / "out").exists()


FEW = "stages.sft.model={tiling: {max_tiles: 1}}"


def test_batches_counted_in_packs_are_noted(
    study_tree: dict[str, Any], write_study: Write, told: Callable[[], Any]
) -> None:
    study_tree["overrides"] = [f"stages.{name}.parallel.tp=1" for name in ("language", "sft")] + ["stages.sft.blind=[]"]
    assert run_main([str(write_study(study_tree)), "--dry-run", "--json"]) == 0
    plan = told()
    assert all(run["samples"] is None for run in plan["runs"]) and any("packs" in note for note in plan["notes"])


@pytest.mark.parametrize("name", list_studies())
def test_shipped_studies_resolve_and_say_whose_figures_stand_beside(name: str, tmp_path: Path) -> None:
    study = find_study(name).study
    assert study.published and all(re.search("table|figure", table.source) for table in study.published)
    known = [row.name for row in study.rows() if all(point in INJECTIONS for point in _injections(row.overrides))]
    runs = all_runs(study, tmp_path, known)
    assert len(runs) == len(known) * len(study.seeds) and known


def _injections(overrides: list[str]) -> list[str]:
    return [text.partition("name: ")[2].partition(",")[0] for text in overrides if text.startswith("model.injection={")]
