"""EVE's studies: variants differ in what they say, and in nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megavlm.megatron_mm.config import ModelConfig
from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.studies.find import find_study
from megavlm.megatron_mm.studies.plan import planned
from megavlm.megatron_mm.studies.runs import VariantRun, all_runs
from megavlm.megatron_mm.studies.schema import Study
from megavlm.megatron_mm.studies.shared import Sharing

STUDIES = ("eve-aligning", "eve-text-mix", "eve-v2-routing")
Runs = dict[str, VariantRun]


def first_seed(name: str, folder: Path) -> Runs:
    """The trainings of a study's first seed by variant."""
    runs = all_runs(find_study(name).study, folder)
    return {run.variant: run for run in runs if run.seed == runs[0].seed}


def model(run: VariantRun, stage: str) -> ModelConfig:
    return StageData.of(run.recipe, stage).model


def counts(run: VariantRun, stage: str) -> dict[str, int]:
    return model(run, stage).parameter_counts()


def differing(one: Any, other: Any, place: str = "") -> set[str]:
    """The keys at which two trees differ."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return set() if one == other else {place}
    return set().union(*(differing(one.get(k), other.get(k), f"{place}.{k}".strip(".")) for k in one | other))


@pytest.mark.parametrize("name", STUDIES)
def test_as_many_samples_after_one_language_model(name: str, tmp_path: Path) -> None:
    study: Study = find_study(name).study
    runs = all_runs(study, tmp_path)
    plan = planned(study, runs, Sharing(runs))
    (samples,) = {run["samples"] for run in plan["runs"]}
    assert samples  # known before anything is packed
    for run in plan["runs"]:
        assert ("language" in run["taken_over"]) == (run["variant"] != study.rows()[0].name)


def test_without_an_attention_a_variant_lacks_its_weights_and_nothing_else(tmp_path: Path) -> None:
    runs = first_seed("eve-aligning", tmp_path)
    assert list(runs) == ["aligned", "without", "no_window_attention", "no_class_attention"]
    for stage in ("prealign", "pretrain", "sft"):
        whole, c = counts(runs["aligned"], stage), model(runs["aligned"], stage).encoder.channels
        attention = 2 * 2 * c + c * c + 2 * c * c + c * c + c  # two norms; query, key and value; the way out
        assert counts(runs["no_window_attention"], stage) == taken(whole, "encoder", attention)
        assert counts(runs["no_class_attention"], stage) == taken(whole, "connector", attention)


def taken(whole: dict[str, int], axis: str, count: int) -> dict[str, int]:
    return {name: n - count if name in (axis, "exported", "total") else n for name, n in whole.items()}


def test_without_aligning_nothing_but_the_text_is_learnt_from(tmp_path: Path) -> None:
    runs = first_seed("eve-aligning", tmp_path)
    for stage in ("prealign", "pretrain", "sft"):
        aligned, without = (model(runs[name], stage) for name in ("aligned", "without"))
        assert [each.name for each in aligned.objectives] == ["next_token", "patch_aligning"]
        assert [each.name for each in without.objectives] == ["next_token"]
        assert without.parameter_counts()["exported"] == aligned.parameter_counts()["exported"]
        trained = [set(runs[name].recipe.section("stages")[stage].train) for name in ("aligned", "without")]
        assert trained[0] - trained[1] == {"objectives"} and not trained[1] - trained[0]


def test_text_mixes_are_the_papers_that_have_no_captions_from_the_web(tmp_path: Path) -> None:
    study = find_study("eve-text-mix").study
    runs = first_seed(study.name, tmp_path)
    for table in study.published:
        published = [row.split(":") for row in table.rows]
        assert list(runs) == [f"{pictures}_{text}" for pictures, text, web in published if web == "0"]
    for name, run in runs.items():
        weights = {f"stages.pretrain.mixture.weights.{kind}" for kind in ("text", "vqa")}
        assert differing(runs["10_0"].recipe.tree, run.recipe.tree) <= weights
        shares = run.recipe.section("stages")["pretrain"].mixture.shares
        total = sum(share.weight or 0 for share in shares.values())
        text = shares["text"].weight / total if "text" in shares else 0
        assert text == pytest.approx(int(name.partition("_")[2]) / 10)


def test_divided_has_every_layer_twice_and_trains_the_second_alone_at_first(tmp_path: Path) -> None:
    runs = first_seed("eve-v2-routing", tmp_path)
    shape = model(runs["divided"], "sft").decoder
    groups = shape.kv_heads * shape.hidden // shape.heads
    attention = 2 * shape.hidden**2 + shape.hidden + 2 * (shape.hidden + 1) * groups
    layer = attention + 3 * shape.hidden * shape.ffn + 2 * shape.hidden
    for stage in ("layers", "pretrain", "sft"):
        shared, trained, divided = (counts(run, stage) for run in runs.values())
        assert shared == trained and differing(shared, divided) == {"injection", "exported", "total"}
        assert divided["injection"] - shared["injection"] == shape.layers * layer
    learns = {name: set(run.recipe.section("stages")["layers"].train) for name, run in runs.items()}
    patches = {"encoder", "connector"}
    assert learns == {"shared": patches, "shared_trained": patches | {"decoder"}, "divided": patches | {"injection"}}
