"""`megavlm compare` and which predictions a word means, from files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megavlm.megatron_mm.evaluation.compare import compare
from megavlm.megatron_mm.evaluation.found import predictions_folder
from megavlm.megatron_mm.evaluation.intervals import score_interval
from megavlm.megatron_mm.evaluation.predictions import About, Prediction, write_predictions
from megavlm.platform.cli import main
from megavlm.platform.errors import InputError
from megavlm.platform.runs import RunFolder


def answered(folder: Path, suite: str, right: range, total: int = 200, about: About | None = None) -> Path:
    """Items of a suite, right those in a range."""
    items = [Prediction(f"i{i}", "spell", i in right, f"said {i in right}", "<b>") for i in range(total)]
    write_predictions(folder / f"{suite}.jsonl", items, about)
    return folder


@pytest.fixture
def three(tmp_path: Path) -> dict[str, Path]:
    """A reference, one that is worse in one suite, and one that has only the other."""
    for name, right in (("a", range(180)), ("b", range(100)), ("c", range(5, 182))):
        answered(tmp_path / name, "gsm8k", right)
    answered(tmp_path / "a", "mmlu", range(300), 500)
    answered(tmp_path / "c", "mmlu", range(302), 500)
    return {name: tmp_path / name for name in "abc"}


def test_differences_are_paired_with_the_first_and_marked_where_they_are_real(three: dict[str, Path]) -> None:
    told = compare(three)
    gsm8k = told.suites["gsm8k"]
    assert (gsm8k.reference, gsm8k.others["b"].score) == (0.9, 0.5)
    worse, unclear = gsm8k.others["b"], gsm8k.others["c"]
    assert (worse.difference, worse.lost, worse.gained, worse.change) == (pytest.approx(-0.4), 80, 0, "worse")
    assert (unclear.lost, unclear.gained, unclear.change) == (5, 2, "unclear")
    low, high = score_interval([1.0, 0.0, -1.0], [80, 120, 0])
    assert (worse.low, worse.high) == pytest.approx((-float(high), -float(low)))


def test_what_only_some_have_is_missing_and_not_in_the_average(three: dict[str, Path]) -> None:
    told = compare(three)
    assert told.suites["mmlu"].missing == ("b",) and "b" not in told.suites["mmlu"].others
    assert told.averaged == ("gsm8k",) and told.mean["b"] == told.suites["gsm8k"].others["b"]
    without = compare({name: three[name] for name in "ac"})
    assert without.averaged == ("gsm8k", "mmlu")
    assert without.reference_mean == pytest.approx((0.9 + 0.6) / 2)
    assert without.mean["c"].difference == pytest.approx((-3 / 200 + 2 / 500) / 2)


def test_what_was_asked_differently_is_refused_by_the_field(tmp_path: Path) -> None:
    answered(tmp_path / "a", "mmlu", range(3), about=About("mmlu", protocol="nvlm"))
    answered(tmp_path / "b", "mmlu", range(3), about=About("mmlu", protocol="llava", engine="hf"))
    with pytest.raises(InputError, match="protocol 'nvlm' and 'llava'"):
        compare({"a": tmp_path / "a", "b": tmp_path / "b"})


def test_nothing_in_common_or_a_suite_of_nobody_is_refused(three: dict[str, Path], tmp_path: Path) -> None:
    answered(tmp_path / "d", "math", range(3))
    with pytest.raises(InputError, match="no suite") as caught:
        compare({"d": tmp_path / "d", "b": three["b"]})
    assert "b has gsm8k" in str(caught.value.fix)
    with pytest.raises(InputError, match="nobody"):
        compare(three, only=["ocrbench"])


def test_the_verb_tells_json_alone_and_the_same_in_words(three: dict[str, Path], capsys: pytest.CaptureFixture) -> None:
    words = ["compare", *map(str, three.values())]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["reference"] == str(three["a"]) and told["suites"]["mmlu"]["missing"] == [str(three["b"])]
    assert told["suites"]["gsm8k"]["compared"][str(three["b"])]["change"] == "worse"
    assert main([*words, "--suites", "mmlu"]) == 0
    out = capsys.readouterr().out
    assert "missing" in out and "no clear change" in out and "gsm8k" not in out


def test_the_page_shows_intervals_and_items_that_changed_sides(
    three: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    page = tmp_path / "page.html"
    assert main(["compare", *map(str, three.values()), "--html", str(page), "--json"]) == 0
    json.loads(capsys.readouterr().out)
    html = page.read_text()
    for part in ("items lost", "items gained", "i100", "&lt;b&gt;", "No predictions of", "<svg"):
        assert part in html
    assert "<b>" not in html


@pytest.mark.parametrize("words", [["one"], ["one", "two", "--confidence", "95"]])
def test_one_model_or_no_fraction_is_bad_input(words: list[str]) -> None:
    assert main(["compare", *words]) == 2


def test_a_word_means_a_stage_a_stage_of_another_run_or_a_folder(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {"name": "r"}, {}, ["megavlm"])
    answered(run.path("predictions", "sft"), "text", range(3))
    stage = run.path("predictions", "sft")
    assert predictions_folder("sft", run) == stage
    assert predictions_folder(f"{run.root}:sft") == stage
    assert predictions_folder(str(stage)) == stage
    other = RunFolder.create(tmp_path / "other", {"name": "o"}, {}, ["megavlm"])
    assert predictions_folder(f"{run.root}:sft", other) == stage


def test_a_word_that_means_nothing_says_what_is_there(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {"name": "r"}, {}, ["megavlm"])
    answered(run.path("predictions", "sft"), "text", range(3))
    for word, inside in [(f"{run.root}:lost", None), ("lost", run), (str(run.root), None), ("../secret", run)]:
        with pytest.raises(InputError) as caught:
            predictions_folder(word, inside)
        assert "sft" in str(caught.value.fix)
    with pytest.raises(InputError, match="no run"):
        predictions_folder(f"{tmp_path}/nowhere:sft")
    with pytest.raises(InputError) as caught:
        predictions_folder(str(run.path("predictions")))
    assert "sft" in str(caught.value.fix)
