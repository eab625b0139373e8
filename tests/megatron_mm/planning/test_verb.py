"""`megavlm plan`: what it says, and how it ends."""

from __future__ import annotations

import json

import pytest

from megavlm.platform.cli import main

H100 = ["--gpus", "8", "--gpu", "h100"]


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict, str]:
    """(exit code, the one object on stdout, stderr)."""
    code = main(["plan", *words, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def test_each_stage_that_trains_is_planned(capsys):
    code, told, _ = said(["nvlm-d-7b", *H100, "--top", "2"], capsys)
    assert code == 0 and list(told["stages"]) == ["pretrain", "sft"]
    for stage in told["stages"].values():
        assert len(stage["proposed"]) == 2 and stage["proposed"][0]["slower"] is None
        slower = stage["proposed"][1]["slower"]
        assert slower["seconds"] > 0 and slower["cause"] in stage["own"]["step_seconds"]
        assert stage["checkpoint"]["every"] >= 1 and stage["load"].startswith("assumed")


def test_a_layout_that_cannot_be_ends_with_3_and_says_why_and_what_would_do(capsys):
    words = ["nvlm-d-7b", *H100, "--stage", "sft", "stages.sft.parallel.tp=1", "stages.sft.parallel.pp=3"]
    code, told, _ = said(words, capsys)
    stage = told["stages"]["sft"]
    assert code == 3 and stage["own"] is None and stage["refused"]["kind"] == "layout"
    assert "8 processes" in stage["refused"]["what"] and stage["proposed"]


def test_what_lacks_memory_is_told_with_its_figures(capsys):
    code, told, _ = said(["nvlm-d-72b", *H100, "--stage", "sft", "stages.sft.parallel.pp=1", "--top", "0"], capsys)
    stage = told["stages"]["sft"]
    assert code == 3 and stage["refused"]["kind"] == "memory" and stage["proposed"] == []
    assert max(rank["total"] for rank in stage["own"]["memory"]) > stage["own"]["memory_limit"]


def test_the_fix_for_lacking_memory_is_a_layout_that_fits(capsys):
    words = ["nvlm-d-72b", "--gpus", "64", "--gpu", "h100", "--stage", "sft", "stages.sft.parallel.pp=1"]
    code, told, _ = said([*words, "--top", "1"], capsys)
    refused = told["stages"]["sft"]["refused"]
    assert code == 3 and refused["kind"] == "memory"
    assert said([*words, *refused["fix"].split(), "--top", "0"], capsys)[0] == 0


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["nvlm-d-7b", "--gpus", "8", "--gpu", "h10"], "no GPU 'h10'"),
        (["nvlm-d-7b", "--gpus", "12", "--gpu", "h100"], "12 GPUs are no whole machines"),
        (["nvlm-d-7b", *H100, "--stage", "gate"], "stage 'gate' trains nothing"),
        (["nvlm-d-7b", *H100, "--stage", "stf"], "unknown stage 'stf'"),
        (["nvlm-d-7b", *H100, "--stage", "sft", "--sample-tokens", "90000"], "90000"),
        (["curate-demo", *H100], "no section 'stages'"),
    ],
)
def test_bad_input_ends_with_2(words, what, capsys):
    code, told, err = said(words, capsys)
    assert code == told["error"]["exit_code"] == 2 and what in err


def test_for_people_it_is_a_table_with_the_recipes_own_layout_marked(capsys):
    assert main(["plan", "nvlm-d-7b", *H100, "--stage", "sft", "--top", "1"]) == 0
    out = capsys.readouterr().out
    assert out.count("the recipe's") == 1 or "as the recipe has it" in out
    assert "GPU-hours" in out and "a checkpoint of" in out and max(map(len, out.splitlines())) < 300


def test_samples_that_are_told_are_taken(capsys):
    tiles = [said(["nvlm-d-7b", *H100, "--stage", "sft", "--sample-tiles", n, "--top", "0"], capsys)[1] for n in "37"]
    flops = [told["stages"]["sft"]["own"]["model_flops_per_step"] for told in tiles]
    assert flops[0] < flops[1]


def test_fewer_failures_want_fewer_saves(capsys):
    words = ["nvlm-d-7b", *H100, "--stage", "sft", "--top", "0", "--mtbf-hours"]
    every = [said([*words, hours], capsys)[1]["stages"]["sft"]["checkpoint"]["every"] for hours in ("1e4", "4e4")]
    assert every[1] == pytest.approx(2 * every[0], rel=0.01)  # Young: with the square root


def test_a_trace_stands_beside_the_formulas(capsys, tmp_path):
    page = tmp_path / "plan.html"
    words = [
        "nvlm-d-mini",
        "--gpus",
        "2",
        "--gpu",
        "h100",
        "--stage",
        "sft",
        "--top",
        "0",
        "--trace",
        "--html",
        str(page),
    ]
    code, told, _ = said(words, capsys)
    stage = told["stages"]["sft"]
    assert code == 0 and {rank["pipeline_stage"] for rank in stage["trace"]} == {0}
    assert max(rank["peak"] for rank in stage["trace"]) == pytest.approx(stage["own"]["memory"][0]["total"], rel=0.2)
    assert "traced" in page.read_text()
