"""Scores that are differences of stages, ranks of scores, rows of their own recipe; and the bounds of campaigns."""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from megavlm.megatron_mm.evaluation.predictions import Prediction, write_predictions
from megavlm.megatron_mm.evaluation.stage import predictions_path
from megavlm.megatron_mm.studies.collect import figures, score_of
from megavlm.megatron_mm.studies.figures import agreement, difference
from megavlm.megatron_mm.studies.find import find_study
from megavlm.megatron_mm.studies.plan import planned
from megavlm.megatron_mm.studies.runs import all_runs
from megavlm.megatron_mm.studies.schema import Study
from megavlm.megatron_mm.studies.shared import Sharing
from megavlm.megatron_mm.studies.verb import report_main, run_main
from megavlm.platform.errors import ConfigError

Tree = dict[str, Any]

# What a score may be beside a share: a difference of stages, and whether two order the variants alike.

VALUES = st.lists(st.tuples(st.integers(0, 6), st.floats(-5, 5)), min_size=2, max_size=12)


@given(VALUES)
def test_ranks_are_scipys(pairs: list[tuple[int, float]]) -> None:
    one, other = ([pair[k] for pair in pairs] for k in (0, 1))
    found = agreement(one, other)
    if len(set(one)) == 1 or len(set(other)) == 1:
        assert found.rho is None and found.alike == found.opposite == 0
        return
    assert found.rho == pytest.approx(scipy.stats.spearmanr(one, other).statistic, abs=1e-9)
    signs = [np.sign(a - c) * np.sign(b - d) for k, (a, b) in enumerate(pairs) for c, d in pairs[:k]]
    assert (found.alike, found.opposite) == (signs.count(1), signs.count(-1)) and found.variants == len(pairs)


@pytest.fixture
def reported(
    study_tree: Tree, write_study: Callable[[Tree], Path], tmp_path: Path, pretend: Callable[..., None]
) -> Callable[..., Path]:
    """`reported(rights, losses)`: a study of two seeds that is through; its folder. rights: (before, after) by variant.

    Of 30 items each variant answers so many right before and after; seed 4's are others than seed 3's.
    """

    def make(rights: dict[str, tuple[int, int]], losses: dict[str, float], **changes: Any) -> Path:
        scores = {
            "vqa": {"stage": "sft", "suite": "vqa"},
            "change": {"stage": "sft", "suite": "vqa", "minus": "language"},
            "loss": {"stage": "sft", "metric": "loss", "over": 1},
        }
        overrides = [*study_tree["overrides"], "stages.language.evaluate={vqa: vqa}"]
        tree = {"seeds": [3, 4], "scores": scores, "overrides": overrides, "rank": ["vqa", "loss"]}
        path, out = write_study(study_tree | tree | changes), tmp_path / "out"
        for run in all_runs(find_study(str(path)).study, out):
            before, after = (answered(count, run.seed) for count in rights[run.variant])
            pretend(run, right=after, losses=[losses[run.variant]])
            write_predictions(predictions_path(run.folder, "language", "vqa"), items(before))
        return path

    return make


def answered(count: int, seed: int) -> list[bool]:
    right = [k < count for k in range(30)]
    random.Random(seed).shuffle(right)
    return right


def items(right: list[bool]) -> list[Prediction]:
    return [Prediction(f"v{k}", "all", yes, "red" if yes else "no", "red") for k, yes in enumerate(right)]


RIGHTS = {"one": (20, 11), "two": (20, 21)}


def table_of(path: Path, capsys: pytest.CaptureFixture[str]) -> Tree:
    capsys.readouterr()
    assert report_main([str(path.parent / "out"), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def table(reported: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> Callable[..., Tree]:
    """`table(rights, losses)`: the table of such a study, as `study report --json` prints it."""

    def make(rights: dict[str, tuple[int, int]], losses: dict[str, float], **changes: Any) -> Tree:
        path = reported(rights, losses, **changes)
        assert run_main([str(path), "--out", str(path.parent / "out")]) == 0  # nothing is left to train
        return table_of(path, capsys)

    return make


def test_a_difference_between_stages_is_paired_item_by_item(table: Callable[..., Tree], tmp_path: Path) -> None:
    found = table(RIGHTS, {"one": 1.0, "two": 2.0})
    for row in found["rows"]:
        before, after = RIGHTS[row["variant"]]
        change = row["scores"]["change"]
        assert change["value"] == pytest.approx((after - before) / 30) and change["items"] == 30
        sides = [[items(answered(count, seed)) for seed in (3, 4)] for count in (before, after)]
        truth = difference(*sides)
        assert (change["low"], change["high"]) == pytest.approx((truth.low, truth.high))
        assert "difference" not in change  # it is one already
    page = Path(found["files"]["markdown"]).read_text()
    assert "-30.0" in page and "+3.3" in page and "change: points more than after stage language" in page
    study = find_study(str(tmp_path / "tiny.yaml")).study
    run = next(run for run in all_runs(study, tmp_path / "out") if run.variant == "one")
    assert score_of(study, run, "change") == pytest.approx(-0.3)


@pytest.mark.parametrize(("losses", "rho"), [({"one": 1.0, "two": 2.0}, 1.0), ({"one": 2.0, "two": 1.0}, -1.0)])
def test_the_report_says_whether_two_scores_rank_alike(
    table: Callable[..., Tree], losses: dict[str, float], rho: float
) -> None:
    found = table(RIGHTS, losses)
    (ranks,) = found["ranks"]
    assert ranks["scores"] == ["vqa", "loss"] and ranks["rho"] == pytest.approx(rho) and ranks["variants"] == 2
    told = f"loss against vqa: Spearman's rank correlation over 2 variants is {rho:+.2f}"
    for name in ("markdown", "report"):
        assert told in Path(found["files"][name]).read_text().replace("&#x27;", "'").replace("&#39;", "'")


def test_a_variant_has_a_recipe_and_a_reference_of_its_own(
    study_tree: Tree, write_study: Callable[[Tree], Path], tmp_path: Path
) -> None:
    recipe = Path(study_tree["recipe"])
    (tmp_path / "other.yaml").write_text(recipe.read_text().replace("warmup_steps: 2", "warmup_steps: 1"))
    variants = [*study_tree["variants"], {"name": "three", "recipe": "other.yaml", "against": "two"}]
    study = find_study(str(write_study(study_tree | {"variants": variants}))).study
    runs = {run.variant: run for run in all_runs(study, tmp_path / "out")}
    assert runs["three"].base == str(tmp_path / "other.yaml") and runs["two"].base == str(recipe)
    assert runs["three"].command()[1] == runs["three"].base
    assert [study.compared_with(row) for row in study.rows()] == ["one", "one", "two"]
    assert planned(study, list(runs.values()), Sharing(list(runs.values())))["runs"][2]["variant"] == "three"


def test_a_gate_counts_for_nothing_in_what_was_seen(
    study_tree: Tree, write_study: Callable[[Tree], Path], tmp_path: Path, pretend: Callable[..., None]
) -> None:
    seen = []
    for gated in (True, False):
        kept = [text for text in study_tree["overrides"] if not (gated and text.startswith("stages.gate"))]
        study = find_study(str(write_study(study_tree | {"overrides": kept}))).study
        run = all_runs(study, tmp_path / str(gated))[0]
        assert ("gate" in run.stages) == gated
        pretend(run, right=[True], losses=[1.0])
        seen.append(figures(study, run))
    assert seen[0] == seen[1] and seen[0].steps == 3 + 4


WRONG = {
    "minus itself": ({"scores": {"a": {"stage": "sft", "suite": "vqa", "minus": "sft"}}}, "minus"),
    "minus of a metric": ({"scores": {"a": {"stage": "sft", "metric": "loss", "minus": "language"}}}, "metric"),
    "one rank": ({"rank": ["vqa"]}, "rank"),
    "twice in rank": ({"rank": ["vqa", "vqa"]}, "rank"),
    "unknown rank": ({"rank": ["vqa", "lost"]}, "rank"),
    "against nobody": ({"variants": [{"name": "one", "against": "none"}]}, "variants.one.against"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_with_its_place(case: str, study_tree: Tree) -> None:
    changes, where = WRONG[case]
    with pytest.raises(ConfigError) as error:
        Study.parse(study_tree | {"name": "tiny"} | changes)
    assert where in (error.value.where or "") and error.value.fix


def test_minus_needs_a_stage_that_answers_the_suite(
    study_tree: Tree, write_study: Callable[[Tree], Path], tmp_path: Path
) -> None:
    scores = {"a": {"stage": "sft", "suite": "vqa", "minus": "language"}}
    study = find_study(str(write_study(study_tree | {"scores": scores}))).study
    with pytest.raises(ConfigError, match="'language' is not evaluated on suite 'vqa'"):
        all_runs(study, tmp_path / "out")


# What the campaigns hold their tables against.


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """`script(name)`: a campaign's module."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[3] / "benchmarks/campaigns"))
    return importlib.import_module


# text after the SFT, its change, KL; by variant, of which the first has no text
HELD = {"0": (0.60, -0.38, 2.0), "0.1": (0.95, -0.03, 0.3), "0.5": (0.98, 0.0, 0.1), "0.67": (0.985, 0.005, 0.2)}
BROKEN = {
    "held": ({}, []),
    "little lost": ({"0": (0.80, -0.18, 2.0)}, ["without text the text task changes by -0.180"]),
    "never kept": ({"0.5": (0.97, -0.01, 0.1), "0.67": (0.975, -0.005, 0.2)}, ["the best share changes it by -0.005"]),
    "ranked otherwise": ({"0.5": (0.98, 0.0, 0.4)}, ["0.5 keeps more text than 0.1, and has the higher KL"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_the_campaign_says_what_of_its_bounds_does_not_hold(case: str, script: Callable[[str], Any]) -> None:
    changed, problems = BROKEN[case]
    keys = ("text", "text_change", "kl")
    rows = [
        {"variant": name, "scores": {key: {"value": value} for key, value in zip(keys, values, strict=True)}}
        for name, values in (HELD | changed).items()
    ]
    assert script("study_text_share").unkept({"reference": "0", "rows": rows}) == problems


def test_both_ends_of_a_line_are_held_against_what_they_are_of(script: Callable[[str], Any]) -> None:
    campaign = script("text_interpolation")
    before, after, images = (items(answered(count, seed)) for count, seed in ((20, 1), (11, 2), (25, 3)))
    own = {stage: {"text": after, "vqa": images} for stage in campaign.TRAINED}
    ends = {
        (stage, weight): own[stage] | ({"text": before} if weight == 0 else {}) for stage in own for weight in (0, 1)
    }
    assert list(campaign.unlike(ends, own, before)) == []
    wrong = items([not item.correct for item in before[:3]] + [item.correct for item in before[3:]])
    assert list(campaign.unlike(ends | {("sft", 0): {"text": wrong, "vqa": images}}, own, before)) == [
        "sft: weight 0 and the backbone answer 3 items differently"
    ]
    assert list(campaign.unlike(ends | {("control", 1): {"text": before, "vqa": images}}, own, before))[0].startswith(
        "control: weight 1 and the stage itself"
    )
    assert sum(line.startswith("| control") for line in campaign.table(ends, own, before)) == 2
