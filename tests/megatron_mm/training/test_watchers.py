"""Watchers of a stage that trains: they change nothing, tell what they see, and end the stage where they are to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.checkpoints.listing import complete_checkpoints
from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.evaluation.predictions import Prediction, read_predictions
from megavlm.megatron_mm.evaluation.stage import evaluate_stage
from megavlm.megatron_mm.inference.load import load_stage
from megavlm.megatron_mm.training.back import plan_back
from megavlm.megatron_mm.training.outcome import stage_steps
from megavlm.megatron_mm.training.packs import ensure_packs
from megavlm.megatron_mm.training.pulse import Pulse
from megavlm.megatron_mm.training.watchers.base import check_watchers
from megavlm.megatron_mm.training.watchers.shown import add_watched, watched_words
from megavlm.megatron_mm.training.watchers.verdict import refuse_stopped
from megavlm.megatron_mm.training.work import work
from megavlm.platform.config import Recipe, load_recipe
from megavlm.platform.errors import CheckFailed, ConfigError
from megavlm.platform.report import Report
from megavlm.platform.runs import RunFolder

STAGES = """\
  language:
    train: [decoder]
    mixture: {weights: {text: 1}, sequence_length: 128, packs_per_batch: 2}
    steps: 80
    precision: fp32
    optimizer: {lr: 1e-2, min_lr: 1e-3, warmup_steps: 2}
    evaluate: {text: text}
  sft:
    after: [language]
    train: [encoder, connector, decoder]
    mixture: {weights: {vqa: 1}, sequence_length: 128, packs_per_batch: 1}
    steps: 6
    precision: fp32
    optimizer: {lr: 1e-3, min_lr: 1e-3, schedule: constant}
    checkpoint: {every: 2, keep_last: 1}
"""
LOST = (
    "stages.sft.optimizer={lr: 0.3, min_lr: 0.3, schedule: constant, clip: 0}"  # at which the decoder forgets at once
)


def watch(*watchers: str) -> str:
    return f"stages.sft.watch=[{', '.join(watchers)}]"


def gate(every: int, on_fail: str = "warn") -> str:
    return f"{{name: gate, every: {every}, baseline: language, max_drop: 0.2, on_fail: {on_fail}}}"


def drift(every: int, on_fail: str = "warn", most: float | None = None) -> str:
    allowed = "" if most is None else f", max_kl: {most}"
    return f"{{name: drift, every: {every}, baseline: language, texts: text, count: 12, on_fail: {on_fail}{allowed}}}"


class Workshop:
    """Runs of the two stages, the first of which is trained once and copied."""

    def __init__(self, folder: Path, recipe: Path) -> None:
        self.folder, self.recipe = folder, recipe

    def load(self, *overrides: str) -> Recipe:
        return load_recipe(str(self.recipe), overrides)

    def train(self, name: str, *overrides: str, stop: int | None = None) -> RunFolder:
        """As far as it goes, or to step `stop` of the last stage, in this process."""
        found = self.load(*overrides)
        if name != "first" and not (self.folder / name).exists():
            shutil.copytree(self.folder / "first", self.folder / name)
        run = RunFolder.create(self.folder / name, found.tree, found.origins, ["train"], may_change=["*"])
        stages = ["language"] if name == "first" else ["sft"]
        ensure_packs(run, StageData.of(found, stages[0]))
        attempt = run.new_attempt()
        try:
            with attempt:
                work(run, attempt, stages, Pulse(attempt, 0, 1), lambda: stop == len(steps_of(run)) + 1)
        finally:
            backend.shutdown()
        return run


def steps_of(run: RunFolder) -> list[dict[str, Any]]:
    return stage_steps(run, "sft")


def losses(run: RunFolder) -> list[tuple[float, float]]:
    return [(line["loss"], line["grad_norm"]) for line in steps_of(run)]


def events(run: RunFolder, kind: str) -> list[dict[str, Any]]:
    return [event for attempt in run.attempts() for event in attempt.events() if event["kind"] == kind]


def names(run: RunFolder) -> list[str]:
    return [folder.name for folder in complete_checkpoints(run, "sft")]


@pytest.fixture(scope="module")
def workshop(recipe: Path, tmp_path_factory: pytest.TempPathFactory, write_recipe: Any) -> Iterator[Workshop]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("watched")
    for name in ("text", "vqa"):
        (folder / name).symlink_to(recipe.parent / name)
    made = Workshop(folder, write_recipe(folder, STAGES, max_tiles=2, seed=5))
    made.train("first")
    yield made
    backend.shutdown()


@pytest.fixture(scope="module")
def plain(workshop: Workshop) -> RunFolder:
    return workshop.train("plain")


@pytest.fixture(scope="module")
def watched(workshop: Workshop) -> RunFolder:
    """With all that watchers do short of failing, in two sittings."""
    options = watch(gate(4, "roll_back"), drift(2, "stop", 99.0), drift(5))
    workshop.train("watched", options, stop=3)
    return workshop.train("watched", options)


def test_training_is_bit_equal_with_watchers_and_without(plain: RunFolder, watched: RunFolder) -> None:
    assert len(losses(plain)) == 6 and losses(watched) == losses(plain)


def test_looks_come_at_their_steps_and_the_last_one_in_both_sittings(watched: RunFolder) -> None:
    looks = [(event["step"], event["watcher"]) for event in events(watched, "watch")]
    assert looks == [(2, "drift"), (4, "gate"), (4, "drift"), (5, "drift-2"), (6, "gate"), (6, "drift"), (6, "drift-2")]
    lines = {line["step"]: line for line in steps_of(watched)}
    for event in events(watched, "watch"):
        key = event["watcher"].replace("-", "_")
        assert event["seconds"] == lines[event["step"]][f"{key}_seconds"] > 0
    assert "drift_kl" not in lines[3] and "gate_drop" not in lines[2]
    first = [event for event in events(watched, "watch") if event["watcher"] == "gate"][0]
    assert first["gate"]["items"] == 60 and first["limits"] == {"drop": 0.2}
    kept = read_predictions(watched.path("predictions", "sft", "step-000004", "text.jsonl"))
    assert sum(item.correct for item in kept) / 60 == lines[4]["gate_accuracy_after"]


def test_only_steps_that_all_who_may_end_it_passed_are_kept_to_come_back_to(watched: RunFolder) -> None:
    marked = [folder.name for folder in complete_checkpoints(watched, "sft") if (folder / "PASSED").exists()]
    assert marked == ["step-000006"] and names(watched) == ["step-000006"]
    saved = [event["step"] for event in events(watched, "saved") if event["stage"] == "sft"]
    assert saved == [0, 2, 3, 4, 6]  # the first to come back to; the third because someone asked


def test_rolled_back_to_the_newest_that_passed_and_on_from_there_only_when_told(
    workshop: Workshop, plain: RunFolder, watched: RunFolder
) -> None:
    seen = {event["step"]: event["kl"] for event in events(watched, "watch") if event["watcher"] == "drift"}
    assert 0 < seen[2] < seen[4]
    between = (seen[2] * seen[4]) ** 0.5
    options = watch(drift(2, "roll_back", between))
    with pytest.raises(CheckFailed, match=r"(?s)'drift'.*went back to step 2.*beyond the allowed") as error:
        workshop.train("back", options)
    assert error.value.exit_code == 3 and "step 4" in error.value.where
    assert all(word in error.value.fix for word in ("text", "optimizer.lr", "interpolate", "on_fail: warn"))
    run = RunFolder.open(workshop.folder / "back")
    assert names(run) == ["step-000002"] and [line["step"] for line in steps_of(run)] == [1, 2]
    assert not run.path("stages", "sft", "finished").exists()
    with pytest.raises(CheckFailed, match="went back to step 2"):  # the same command says why, and trains nothing
        workshop.train("back", options)
    assert len(events(run, "watch")) == 2
    workshop.train("back", watch(drift(2, "warn", between)))
    assert losses(run) == losses(plain) and run.path("stages", "sft", "finished").exists()


def test_a_first_look_that_fails_goes_back_to_the_beginning(workshop: Workshop) -> None:
    with pytest.raises(CheckFailed, match="went back to step 0"):
        workshop.train("lost", LOST, watch(gate(3, "roll_back")))
    run = RunFolder.open(workshop.folder / "lost")
    assert names(run) == ["step-000000"]
    aside = events(run, "rolled_back")[0]
    assert aside["to"] == 0 and aside["set_aside"] == ["step-000002"]
    assert (run.path("checkpoints", "sft", "set-aside-02-watch", "step-000002") / "COMPLETE").exists()
    assert answers(workshop, run) == read_predictions(run.path("predictions", "language", "text.jsonl"))


def answers(workshop: Workshop, run: RunFolder) -> list[Prediction]:
    """Of the stage's newest checkpoint to the text suite."""
    found = workshop.load()
    backend.start_processes()
    try:
        model = load_stage(run, found, "sft", Parallel())
        return evaluate_stage(model, run, found, "sft", {"text": "text"})["text"]
    finally:
        backend.shutdown()


def test_stopped_where_it_failed_until_someone_goes_back_by_hand(workshop: Workshop) -> None:
    with pytest.raises(CheckFailed, match=r"'gate'.*saved after step 3"):
        workshop.train("stopped", LOST, watch(drift(1), gate(3, "stop")))
    run, found = RunFolder.open(workshop.folder / "stopped"), workshop.load(LOST, watch(drift(1), gate(3, "stop")))
    assert names(run) == ["step-000003"]
    stage = found.section("stages")["sft"]
    with pytest.raises(CheckFailed):
        refuse_stopped(run, "sft", stage)
    refuse_stopped(run, "sft", workshop.load(watch(drift(1), gate(3))).section("stages")["sft"])
    back = plan_back(run, found.section("stages"), None, 0, None)
    attempt = run.new_attempt()
    back.do(run, attempt)
    refuse_stopped(run, "sft", stage)
    assert json.loads((attempt.root / "events.jsonl").read_text().splitlines()[-1])["kind"] == "went_back"


@pytest.mark.parametrize(
    ("watcher", "key"),
    [
        ("{name: gate, every: 1, baseline: sft, max_drop: 0.1}", "watch.0.baseline"),
        ("{name: gate, every: 1, baseline: language, suites: [vqa], max_drop: 0.1}", "watch.0.baseline"),
        ("{name: drift, every: 1, baseline: language, texts: txt}", "watch.0.data.sets"),
        ("{name: drift, every: 1, baseline: language, texts: text, on_fail: stop}", "max_kl"),
        ("{name: gate, every: 1, baseline: language, suites: [], max_drop: 0.1}", "suites"),
    ],
)
def test_what_cannot_be_watched_is_refused_with_its_key(workshop: Workshop, watcher: str, key: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_watchers(workshop.load(watch(watcher)), "sft")
    assert (error.value.where or "").endswith(key) and error.value.fix


def test_the_report_and_the_terminal_show_every_look(watched: RunFolder, workshop: Workshop) -> None:
    report = Report("watched")
    add_watched(watched, report)
    page = report.html()
    for words in ("sft, gate: drop over the steps", "sft, drift: kl over the steps", "allowed: 0.2", "allowed: 99"):
        assert words in page
    assert page.count("nats a token away from") == 5
    stage = workshop.load(watch(gate(4), drift(2))).section("stages")["sft"]
    lines = {line["step"]: line for line in steps_of(watched)}
    assert watched_words(lines[3], stage) == ""
    assert watched_words(lines[4], stage) == (
        f"gate drop {lines[4]['gate_drop']:.4f}, drift kl {lines[4]['drift_kl']:.4f}"
    )
