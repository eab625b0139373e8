"""The table's arithmetic against numpy and scipy, and what is counted against the manifest's own files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from megavlm.megatron_mm.evaluation.predictions import Prediction
from megavlm.megatron_mm.studies.collect import figures
from megavlm.megatron_mm.studies.figures import difference, mean, share, wilson_interval
from megavlm.megatron_mm.studies.find import find_study
from megavlm.megatron_mm.studies.runs import VariantRun, all_runs
from megavlm.megatron_mm.studies.verb import report_main, run_main
from megavlm.platform.errors import ConfigError
from megavlm.platform.runs import RunFolder

Answered = list[list[bool]]  # by seed, by item


def predictions(right: list[bool]) -> list[Prediction]:
    return [Prediction(f"i{k}", "all", yes, "a", "a") for k, yes in enumerate(right)]


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(case: tuple[int, int]) -> None:
    right, items = case
    truth = scipy.stats.binomtest(right, items).proportion_ci(0.95, method="wilson")
    assert wilson_interval(right, items) == pytest.approx((truth.low, truth.high), abs=1e-12)


@pytest.mark.parametrize(("right", "items"), [(-1, 4), (5, 4), (0, 0)])
def test_impossible_counts_are_refused(right: int, items: int) -> None:
    with pytest.raises(ValueError, match="impossible"):
        wilson_interval(right, items)


SEEDS = st.tuples(st.integers(1, 4), st.integers(2, 30)).flatmap(
    lambda size: st.lists(
        st.lists(st.booleans(), min_size=size[1], max_size=size[1]), min_size=size[0], max_size=size[0]
    )
)


@settings(max_examples=40)
@given(SEEDS)
def test_shares_are_numpys_means_over_seeds(right: Answered) -> None:
    found, by_seed = share([predictions(items) for items in right]), np.mean(right, axis=1)
    assert found.value == pytest.approx(by_seed.mean()) and found.items == len(right[0])
    assert found.spread == (pytest.approx(by_seed.std(ddof=1), abs=1e-12) if len(right) > 1 else None)
    assert found.low <= found.value + 1e-12 and found.value - 1e-12 <= found.high
    once, thrice = (share([predictions(right[0])] * seeds) for seeds in (1, 3))
    assert thrice.low == pytest.approx(once.low)  # seeds that agree know no more of the items than one


@settings(max_examples=40)
@given(SEEDS, st.randoms(use_true_random=False))
def test_differences_are_numpys_and_turn_round(right: Answered, random: Any) -> None:
    other = [[yes != (random.random() < 0.3) for yes in items] for items in right]
    a, b = ([predictions(items) for items in each] for each in (right, other))
    forth, back = difference(a, b), difference(b, a)
    by_seed = np.mean(other, axis=1) - np.mean(right, axis=1)
    assert forth.value == pytest.approx(by_seed.mean(), abs=1e-12)
    assert forth.spread == (pytest.approx(by_seed.std(ddof=1), abs=1e-12) if len(right) > 1 else None)
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low), abs=1e-9)
    assert forth.low <= forth.value <= forth.high


def test_pairing_tells_more_than_two_intervals() -> None:
    """One item of 100 changes: unpaired, the intervals overlap widely; paired, the difference is narrow."""
    before = [k < 50 for k in range(100)]
    after = [k < 51 for k in range(100)]
    paired = difference([predictions(before)], [predictions(after)])
    assert paired.high - paired.low < 0.1 < share([predictions(before)]).high - share([predictions(before)]).low


def test_a_mean_of_metrics_has_no_interval() -> None:
    found = mean([1.0, 2.0, 6.0])
    assert (found.value, found.low, found.items) == (3.0, None, None) and found.spread == np.std([1, 2, 6], ddof=1)


def count(run: VariantRun) -> dict[str, int]:
    """Samples, tokens and tiles of all rows, straight from the files."""
    seen = {"samples": 0, "tokens": 0, "tiles": 0}
    for path in sorted(run.folder.root.glob("stages/*/packs/rows/*.arrow")):
        table = pa.ipc.open_file(path).read_all().to_pylist()
        seen["samples"] += sum(len(row["index"]) for row in table)
        seen["tokens"] += sum(sum(row["tokens"]) for row in table)
        seen["tiles"] += sum(cut[0] for row in table for images in row["images"] for cut in images)
    return seen


RIGHT = {"one": [True] * 12 + [False] * 18, "two": [True] * 15 + [False] * 15}


@pytest.fixture
def pretended(
    study_tree: dict[str, Any], write_study: Callable[..., Path], tmp_path: Path, pretend: Callable[..., None]
) -> Callable[..., tuple[Path, Path]]:
    """`pretended(**changes)`: a study of two seeds whose trainings are all there; (its file, its folder)."""

    def make(**changes: Any) -> tuple[Path, Path]:
        path, out = write_study(study_tree | {"seeds": [3, 4]} | changes), tmp_path / "out"
        for run in all_runs(find_study(str(path)).study, out):
            right = RIGHT[run.variant] if run.seed == 3 else RIGHT[run.variant][::-1]
            pretend(run, right=right, losses=[4.0, 2.0, 1.0, 3.0 if run.seed == 3 else 5.0])
        return path, out

    return make


def test_what_was_seen_is_what_the_manifests_hold(pretended: Callable[..., tuple[Path, Path]]) -> None:
    path, out = pretended()
    study = find_study(str(path)).study
    runs = all_runs(study, out)
    found = {(run.variant, run.seed): figures(study, run) for run in runs}
    for run in runs:
        of = found[run.variant, run.seed]
        assert {name: getattr(of, name) for name in ("samples", "tokens", "tiles")} == count(run)
        assert (of.samples, of.steps, of.seconds) == (3 * 6 + 4 * 6, 7, 3.5) and of.visual_tokens == 4 * of.tiles
    assert found["two", 3].tokens > found["one", 3].tokens  # the same samples in more tiles
    assert found["one", 3].draws == found["two", 3].draws != found["one", 4].draws


def test_tokens_beside_the_sequence_are_told_apart(
    study_tree: dict[str, Any], write_study: Any, tmp_path: Path, pretend: Any
) -> None:
    """NVLM-D has all visual tokens in the sequence, -X none, -H those of thumbnails."""
    points = {"D": "{name: inline}", "X": "{name: cross_attention, every: 1}", "H": "{name: hybrid, every: 1}"}
    variants = [{"name": name, "overrides": [f"model.injection={point}"]} for name, point in points.items()]
    study = find_study(str(write_study(study_tree | {"variants": variants}))).study
    found = {}
    for run in all_runs(study, tmp_path / "out"):
        pretend(run, right=[True], losses=[1.0])
        found[run.variant] = figures(study, run)
    assert len({of.visual_tokens for of in found.values()}) == len({of.samples for of in found.values()}) == 1
    beside = {name: of.tokens_beside for name, of in found.items()}
    assert beside["D"] == 0 < beside["H"] < beside["X"] == found["X"].visual_tokens
    assert found["D"].tokens - found["X"].tokens >= beside["X"]


def test_steps_left_out_are_not_counted(pretended: Callable[..., tuple[Path, Path]]) -> None:
    path, out = pretended(seeds=[3])
    study = find_study(str(path)).study
    run = all_runs(study, out)[0]
    lines = run.folder.path("metrics.jsonl").read_text().splitlines()
    run.folder.path("metrics.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    assert (figures(study, run).samples, figures(study, run).steps) == (36, 6)


def test_the_table_of_finished_trainings_with_theirs_apart(
    pretended: Callable[..., tuple[Path, Path]], told: Callable[[], Any]
) -> None:
    path, out = pretended()
    assert run_main([str(path), "--out", str(out), "--json"]) == 0  # nothing is left to train
    table = told()
    one, two = table["rows"]
    assert table["finished"] and table["same_samples"] and table["unequal"] == [] and table["reference"] == "one"
    assert [row["variant"] for row in table["rows"]] == ["one", "two"] and one["seeds"] == [3, 4]
    assert one["scores"]["vqa"]["value"] == pytest.approx(0.4) and one["scores"]["vqa"]["items"] == 30
    assert "difference" not in one["scores"]["vqa"]
    assert two["scores"]["vqa"]["difference"]["value"] == pytest.approx(0.1)
    assert two["scores"]["loss"]["value"] == pytest.approx(2.5)  # last two steps: (1, 3) and (1, 5)
    assert two["scores"]["loss"]["spread"] == pytest.approx(np.std([2, 3], ddof=1))
    assert isinstance(one["samples"], int) and one["samples"] == 42
    assert json.loads((out / "table.json").read_text())["rows"] == table["rows"]

    text, page = (out / "table.md").read_text(), (out / "report.html").read_text()
    ours, _, theirs = text.partition("## Theirs")
    assert "80.2" not in ours and "DocVQA" not in ours and "not ours" in theirs and "a paper, table 1" in theirs
    assert re.search(r"\| two +\| 50\.0 ± 0\.0 \(33\.2 to 66\.8\) \| 2\.5 ", ours)
    assert "the very same samples" in ours
    assert page.index("Ours</h2>") < page.index("Theirs</h2>") < page.index("80.2") and "<svg" in page

    assert report_main([str(out), "--json"]) == 0 and told()["rows"] == table["rows"]
    assert len(RunFolder(out).attempts()) == 1, "a report starts nothing"


def test_unequal_numbers_of_samples_are_said_and_refused(
    pretended: Callable[..., tuple[Path, Path]], told: Callable[[], Any]
) -> None:
    more = [{"name": "one"}, {"name": "two", "overrides": ["stages.sft.mixture.batch={unit: tokens, size: 150}"]}]
    path, out = pretended(variants=more, seeds=[3])
    assert run_main([str(path), "--out", str(out), "--json"]) == 3
    (problem,) = told()["unequal"]
    assert "one 42" in problem and "seed 3" in problem
    assert "NOT EQUAL" in (out / "table.md").read_text()


def test_a_training_of_another_configuration_is_not_taken_for_this_one(
    pretended: Callable[..., tuple[Path, Path]], study_tree: dict[str, Any], write_study: Callable[..., Path]
) -> None:
    _, out = pretended(seeds=[3])
    variants = [study_tree["variants"][0], {"name": "two", "overrides": ["stages.sft.optimizer.lr=5e-3"]}]
    changed = write_study(study_tree | {"seeds": [3], "variants": variants})
    with pytest.raises(ConfigError, match="two, seed 3 was made with another 'stages.sft.optimizer.lr'") as error:
        run_main([str(changed), "--out", str(out)])
    assert "--out" in str(error.value.fix)


def test_an_unknown_metric_names_the_nearest(pretended: Callable[..., tuple[Path, Path]]) -> None:
    path, out = pretended(scores={"x": {"stage": "sft", "metric": "los"}}, seeds=[3])
    with pytest.raises(ConfigError, match="no 'los'") as error:
        run_main([str(path), "--out", str(out)])
    assert error.value.fix == "did you mean 'loss'?"
