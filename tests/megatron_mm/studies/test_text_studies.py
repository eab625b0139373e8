"""The studies of text preservation: what varies, what is read of it, and the published figures' own arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megavlm.megatron_mm.studies.find import find_study
from megavlm.megatron_mm.studies.runs import VariantRun, all_runs
from megavlm.megatron_mm.studies.schema import Published
from megavlm.megatron_mm.studies.verb import run_main, show_main

SAMPLES = 180 * 32 + 50 * 26 + 110 * 44  # language, connector, SFT
Tree = dict[str, Any]


def dry_run(name: str, folder: Path, told: Callable[[], Any]) -> dict[str, Tree]:
    """The plan by variant, of one seed."""
    assert run_main([name, "seeds=[1]", "--dry-run", "--json", "--out", str(folder)]) == 0
    return {run["variant"]: run for run in told()["runs"]}


def first_seed(name: str, folder: Path) -> dict[str, VariantRun]:
    study = find_study(name).study
    return {run.variant: run for run in all_runs(study, folder) if run.seed == study.seeds[0]}


def stage(run: VariantRun, name: str = "sft") -> Any:
    return run.recipe.section("stages")[name]


def differing(one: Any, other: Any, place: str = "") -> set[str]:
    """The keys at which two trees differ."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return set() if one == other else {place}
    return set().union(*(differing(one.get(k), other.get(k), f"{place}.{k}".strip(".")) for k in one | other))


def test_shares_of_text_differ_in_the_share_and_nothing_else(tmp_path: Path, told: Callable[[], Any]) -> None:
    runs, plan = first_seed("text-share", tmp_path), dry_run("text-share", tmp_path, told)
    shares = [0, 0.1, 0.25, 0.5, 0.67]
    assert list(runs) == list(plan) == [f"text_share-{share}" for share in shares]
    first = runs["text_share-0"]
    for (name, run), share in zip(runs.items(), shares, strict=True):
        assert plan[name]["samples"] == SAMPLES
        assert differing(first.recipe.tree, run.recipe.tree) <= {"stages.sft.mixture.text_share"}
        mixture = stage(run).mixture
        assert mixture.text_share == share and mixture.text_sets == ["text"]
        assert set(mixture.shares) == ({"vqa", "text"} if share else {"vqa"})
        taken = {"language", "connector"} if run is not first else set()
        assert set(plan[name]["taken_over"]) == taken


def test_drift_is_read_after_the_last_step_against_the_backbone(tmp_path: Path) -> None:
    study = find_study("text-share").study
    kl = study.scores["kl"]
    for run in first_seed("text-share", tmp_path).values():
        (watcher,) = stage(run, kl.stage).watch
        assert f"{watcher.name}_kl" == kl.metric and kl.over == 1 and watcher.on_fail == "warn"
        assert watcher.baseline == study.scores["text_change"].minus == study.scores["backbone"].stage == "language"
        assert watcher.due(stage(run).steps, stage(run).steps)
        assert watcher.texts in stage(run).evaluate.values()  # texts that nobody learns from
        assert watcher.texts not in stage(run).mixture.shares
    assert study.rank == ["text", "kl"]


def test_the_tax_is_of_each_recipe_as_shipped(tmp_path: Path, told: Callable[[], Any]) -> None:
    from megavlm.platform.config import load_recipe

    runs, plan = first_seed("text-tax", tmp_path), dry_run("text-tax", tmp_path, told)
    recipes = ["nvlm-d", "nvlm-x", "nvlm-h", "eagle-x4", "eve", "eve-v2"]
    assert list(runs) == list(plan) == recipes
    for name, run in runs.items():
        assert run.base == f"{name}-mini" and run.command()[:2] == ["train", f"{name}-mini"]
        changed = differing(load_recipe(run.base, [f"seed={run.seed}"]).tree, run.recipe.tree)
        assert changed == ({"stages.hd", "stages.gate"} if name == "eve" else set())
        assert {"language", "sft"} <= set(run.trained)


def test_frozen_decoders_leave_out_the_decoder(tmp_path: Path, told: Callable[[], Any]) -> None:
    runs, plan = first_seed("text-frozen", tmp_path), dry_run("text-frozen", tmp_path, told)
    assert {run["samples"] for run in plan.values()} == {SAMPLES}
    study = find_study("text-frozen").study
    for name in ("D", "X"):
        whole, frozen = runs[name], runs[f"{name}_frozen"]
        assert differing(whole.recipe.tree, frozen.recipe.tree) == {"stages.sft.train"}
        assert set(stage(whole).train) - set(stage(frozen).train) == {"decoder"}
        assert set(stage(frozen).train) < set(stage(whole).train)
        assert set(plan[f"{name}_frozen"]["taken_over"]) == {"language", "connector"}
        row = next(row for row in study.rows() if row.name == f"{name}_frozen")
        assert study.compared_with(row) == name
    axes = {name: run.axes() for name, run in runs.items()}
    assert axes["D"] == axes["D_frozen"] and axes["X"] == axes["X_frozen"] != axes["D"]


@pytest.mark.parametrize("name", ["text-share", "text-tax", "text-frozen"])
def test_shown_as_written(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert show_main([name]) == 0
    text = capsys.readouterr().out
    study = find_study(name).study
    assert "minus language" in text and all(row.recipe in text for row in study.rows() if row.recipe)
    assert all(table.title in text for table in study.published)


# The published figures: each is checked by another of the same paper.


def published(name: str, words: str) -> Published:
    (table,) = [table for table in find_study(name).study.published if words in table.title]
    return table


@pytest.mark.parametrize("words", ["72B and others", "Yi-34B"])
def test_published_averages_are_those_of_the_four_benchmarks(words: str) -> None:
    table = published("text-tax", words)
    assert table.columns == ["MMLU", "GSM8K", "MATH", "HumanEval", "average", "change"]
    backbone = next(iter(table.rows.values()))
    for name, (*four, average, change) in table.rows.items():
        if None not in four:
            assert np.mean(four) == pytest.approx(average, abs=0.0501), name
            if change is not None:  # of LLaVA-OneVision too, whose backbone is the same
                assert float(change) == pytest.approx(average - backbone[4], abs=0.051), name
    others = {"InternVL-2-Llama3-76B": "-6.7", "VILA-1.5 40B": "-6.9", "Llama 3-V": "0"}
    assert words == "Yi-34B" or others.items() <= {name: row[-1] for name, row in table.rows.items()}.items()


def test_the_same_change_stands_in_every_study() -> None:
    tax = {name: row for table in find_study("text-tax").study.published for name, row in table.rows.items()}
    share = published("text-share", "Text in the SFT")
    assert all(row[1:] == tax[name][4:] for name, row in share.rows.items())
    frozen = published("text-frozen", "Change of the average")
    changes = {name: [tax[f"{name} 34B"][5], tax[f"{name} 72B"][5]] for name in frozen.rows}
    assert frozen.rows == changes and len(changes) == 2


def test_training_the_decoder_helps_in_nvlms_table_nearly_everywhere() -> None:
    """Table 9's unfrozen rows are those of nvlm-dxh's tables, which were read by themselves."""
    table = published("text-frozen", "decoder frozen")
    for size, words in (("72B", "NVLM-1.0 72B"), ("34B", "Yi-34B")):
        dxh = published("nvlm-dxh", words)
        row = dict(zip(dxh.columns, dxh.rows["X"], strict=True))
        wanted = [row["AI2D test" if column == "AI2D" else column] for column in table.columns]
        assert table.rows[size] == wanted
        worse = [c for c, a, b in zip(table.columns, table.rows[f"{size} frozen"], wanted, strict=True) if a > b]
        assert worse == (["VQAv2"] if size == "72B" else [])


def test_eves_figure_is_the_one_of_the_study_of_pretraining() -> None:
    joined, (pictures, science) = published("text-share", "EVE with"), find_study("eve-text-mix").study.published
    assert joined.rows == {name: [*pictures.rows[name], *science.rows[name]] for name in pictures.rows}
