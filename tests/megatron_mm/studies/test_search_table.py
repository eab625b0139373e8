"""A search told from the files of its trainings: before there are any, in the middle, and at its end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.studies.find import find_study
from megavlm.megatron_mm.studies.runs import all_runs
from megavlm.megatron_mm.studies.verb import report_main, run_main, show_main
from megavlm.platform.errors import ConfigError
from megavlm.platform.runs import RunFolder

Write = Callable[[dict[str, Any]], Path]
AXES = ["encoder", "connector", "decoder"]
RIGHT = {"decoder": 9, "encoder_decoder": 12, "connector_decoder": 15, "encoder_connector_decoder": 14}  # of 30


@pytest.fixture
def search_tree(study_tree: dict[str, Any]) -> dict[str, Any]:
    """Which axes should a stage train? The decoder, and what else helps."""
    search = {"over": "stages.sft.train", "candidates": AXES, "start": ["decoder"], "score": "vqa"}
    return {key: value for key, value in study_tree.items() if key != "variants"} | {"search": search, "seeds": [3, 4]}


@pytest.fixture
def written_down(
    search_tree: dict[str, Any], write_study: Write, tmp_path: Path, pretend: Callable[..., None]
) -> Callable[..., tuple[Path, Path]]:
    """`written_down("decoder", ...)`: the study's file and folder, where the trainings of these sets have ended."""

    def make(*names: str, **changes: Any) -> tuple[Path, Path]:
        path, out = write_study(search_tree | changes), tmp_path / "out"
        study = find_study(str(path)).study
        for run in all_runs(study.tried(tuple(name.split("_")) for name in names), out):
            right = RIGHT[run.variant] + (1 if run.seed == 4 else -1)  # the mean over seeds is what stands above
            pretend(run, right=[k < right for k in range(30)], losses=[float(right)])
        return path, out

    return make


def dry(path: Path, out: Path, told: Callable[[], Any]) -> dict[str, Any]:
    assert run_main([str(path), "--out", str(out), "--dry-run", "--json"]) == 0
    found: dict[str, Any] = told()
    return found


def test_the_dry_run_tells_the_first_round_the_most_and_all_sets(
    search_tree: dict[str, Any], write_study: Write, tmp_path: Path, told: Callable[[], Any]
) -> None:
    path = write_study(search_tree)
    plan = dry(path, tmp_path / "out", told)
    found = plan["search"]
    assert [(run["variant"], run["seed"]) for run in plan["runs"]] == [("decoder", 3), ("decoder", 4)]
    assert (found["next"], found["ended"]) == ({"round": 1, "combinations": [["decoder"]]}, None)
    assert found["most_trainings"] == 2 * (1 + 2 + 1)
    assert [row["variant"] for row in found["reachable"]] == list(RIGHT)
    counts = StageData.of(all_runs(find_study(str(path)).study, tmp_path)[0].recipe, "sft").model.parameter_counts()
    vision = counts["encoder"] + counts["connector"]
    assert all(row["parameters"] == counts | {"vision": vision} for row in found["reachable"])
    assert not (tmp_path / "out").exists()


def test_sets_are_checked_that_come_late_or_never(search_tree: dict[str, Any], write_study: Write) -> None:
    search_tree["search"] |= {"candidates": [*AXES, "encodre"]}
    with pytest.raises(ConfigError, match="encodre") as error:
        run_main([str(write_study(search_tree)), "--dry-run"])
    assert "variant 'decoder_encodre'" in str(error.value.where)


def test_a_search_chooses_its_variants_itself(search_tree: dict[str, Any], write_study: Write) -> None:
    with pytest.raises(ConfigError, match="chooses its variants"):
        run_main([str(write_study(search_tree)), "--variant", "decoder"])


def test_in_the_middle_the_next_round_is_known(
    written_down: Callable[..., tuple[Path, Path]], told: Callable[[], Any]
) -> None:
    path, out = written_down("decoder", "encoder_decoder", seeds=[4])
    plan = dry(path, out, told)
    assert plan["search"]["rounds"] == [{"round": 1, "kept": ["decoder"]}]
    assert plan["search"]["next"]["combinations"] == [["encoder", "decoder"], ["connector", "decoder"]]
    finished = {run["variant"]: run["finished"] for run in plan["runs"]}
    assert finished == {"decoder": True, "encoder_decoder": True, "connector_decoder": False}
    # what the first round trained of the language model is taken over
    taken = {run["variant"]: run["taken_over"] for run in plan["runs"]}
    assert taken["decoder"] == {} and taken["connector_decoder"] == {"language": "decoder, seed 4"}


def test_the_rounds_and_the_curve_of_a_search_that_is_over(
    written_down: Callable[..., tuple[Path, Path]], told: Callable[[], Any]
) -> None:
    path, out = written_down(*RIGHT)
    assert run_main([str(path), "--out", str(out), "--json"]) == 0  # nothing is left to train
    table = told()
    found = table["search"]
    assert (found["kept"], found["ended"]) == (["connector", "decoder"], "no gain")
    assert found["best"] == pytest.approx(15 / 30) and found["percent"]
    tried = [
        [(row["variant"], round(30 * row["score"]), row["kept"]) for row in one["tried"]] for one in found["rounds"]
    ]
    assert tried == [
        [("decoder", 9, True)],
        [("encoder_decoder", 12, False), ("connector_decoder", 15, True)],
        [("encoder_connector_decoder", 14, False)],
    ]
    assert all(row["axes"]["total"] == row["parameters"] for row in table["rows"])
    assert [row["variant"] for row in table["rows"]] == list(RIGHT) and table["reference"] == "decoder"
    ours, _, theirs = (out / "table.md").read_text().partition("## Theirs")
    assert "round 3: none is better than connector + decoder; the search ends: no gain" in ours and "80.2" in theirs
    page = (out / "report.html").read_text()
    assert "Best score by round" in page and page.index("Best score by round") < page.index("Theirs</h2>")
    events = RunFolder(out).attempts()[0].events()
    assert [event["kept"] for event in events if event["kind"] == "round"] == [one["kept"] for one in found["rounds"]]
    assert report_main([str(out), "--json"]) == 0 and told()["search"] == found


def test_another_score_and_lower_is_better(
    written_down: Callable[..., tuple[Path, Path]], search_tree: dict[str, Any], told: Callable[[], Any]
) -> None:
    search_tree["search"] |= {"score": "loss", "better": "lower"}
    path, out = written_down("decoder", "encoder_decoder", "connector_decoder", seeds=[4])
    assert run_main([str(path), "--out", str(out), "--json"]) == 0
    found = told()["search"]
    assert (found["kept"], found["ended"], found["best"]) == (["decoder"], "no gain", 10.0) and not found["percent"]
    assert "lower is better" in (out / "table.md").read_text()


def test_a_report_of_an_unfinished_round_decides_nothing(
    written_down: Callable[..., tuple[Path, Path]], search_tree: dict[str, Any], told: Callable[[], Any]
) -> None:
    path, out = written_down("decoder", "encoder_decoder", seeds=[4])
    study = find_study(str(path)).study
    (out / "config.yaml").write_text(json.dumps(study.model_dump(mode="json")))
    assert report_main([str(out), "--json"]) == 0
    found = told()["search"]
    assert (found["kept"], found["ended"]) == (["decoder"], "unscored")
    assert found["rounds"][1]["outcome"] == "undecided, connector + decoder without a score"


def test_a_search_is_shown_as_it_is_written(
    search_tree: dict[str, Any], write_study: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show_main([str(write_study(search_tree))]) == 0
    text = capsys.readouterr().out
    assert "stages.sft.train among encoder, connector, decoder" in text and "vqa, higher" in text
