"""Going back after a loss spike: the run without some batches is the run whose manifest never had them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from megavlm.megatron_mm.checkpoints.listing import complete_checkpoints
from megavlm.megatron_mm.config import Stages
from megavlm.megatron_mm.data import build
from megavlm.megatron_mm.data.skips import read_skips
from megavlm.megatron_mm.data.trace import trace_sample, trace_step
from megavlm.megatron_mm.data.verb import trace_main
from megavlm.megatron_mm.training.back import GoBack, plan_back
from megavlm.megatron_mm.training.loop import StageTrainer
from megavlm.megatron_mm.training.outcome import stage_steps
from megavlm.megatron_mm.training.packs import ensure_packs
from megavlm.megatron_mm.training.stages import mark_stage_finished
from megavlm.megatron_mm.training.verb import main as train_main
from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.runs import RunFolder

Open = Callable[..., StageTrainer]
KEEP = ["stages.language.steps=8", "stages.language.checkpoint={every: 2, keep_last: 9}"]


def ask(trainer: StageTrainer, from_step: int, skip: str | None, stage: str | None = None) -> GoBack:
    session = trainer.session
    return plan_back(session.run, session.recipe.section("stages"), stage, from_step, skip)


def go_back(trainer: StageTrainer, from_step: int, skip: str) -> RunFolder:
    run, back = trainer.session.run, ask(trainer, from_step, skip)
    attempt = run.new_attempt()
    ensure_packs(run, trainer.spec, skips=back.skips(run, attempt.number))
    back.do(run, attempt)
    return run


def test_without_some_batches(open_trainer: Open, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    trainer = open_trainer(*KEEP)
    assert trainer.train()
    before = {line["step"]: line["loss"] for line in stage_steps(trainer.session.run, "language")}
    run = go_back(trainer, 5, "5:7")

    assert [folder.name for folder in complete_checkpoints(run, "language")] == ["step-000002", "step-000004"]
    aside = run.path("checkpoints", "language", "set-aside-02")
    assert {path.name for path in aside.iterdir()} == {"step-000006", "step-000008"}
    assert all((path / "COMPLETE").exists() for path in aside.iterdir())
    assert [line["step"] for line in stage_steps(run, "language")] == [1, 2, 3, 4]

    again = open_trainer(*KEEP)
    assert again.step == 4 and again.manifest.batches == 10 and again.train()
    lines = stage_steps(run, "language")
    assert [line["batch"] for line in lines] == [0, 1, 2, 3, 4, 7, 8, 9]

    truth = build.global_batches
    monkeypatch.setattr(
        build, "global_batches", lambda *how: (rows for k, rows in enumerate(truth(*how)) if k not in {5, 6})
    )
    lacking = open_trainer(*KEEP, run="lacking")
    assert lacking.train()
    wanted = stage_steps(lacking.session.run, "language")
    assert [line["batch"] for line in wanted] == list(range(8))
    for found, other in zip(lines, wanted, strict=True):
        assert (found["loss"], found["grad_norm"]) == (other["loss"], other["grad_norm"])
    assert lines[4]["loss"] == before[5] and lines[5]["loss"] != before[6]

    sets = again.manifest.open_sets(again.spec.folders())
    assert trace_step(again.manifest, sets, 6)["batch"] == 7
    with pytest.raises(InputError, match="not in the manifest"):
        trace_step(again.manifest, sets, 9)
    entry = again.manifest.batch(5)[0].entries[0]
    places = trace_sample(again.manifest, sets, f"{entry.set}#{entry.index}")["places"]
    assert {place["step"] for place in places if place["batch"] in (5, 6)} == {None}
    assert {place["step"] for place in places if place["batch"] == 7} <= {6}
    assert trace_main([str(run.root), "--stage", "language", "--step", "6"]) == 0
    capsys.readouterr()

    # The same words once more are a resume, others go back again: earlier gaps stay.
    assert ask(trainer, 5, "5:7").done
    monkeypatch.undo()
    run = go_back(again, 6, "8:9")
    assert read_skips(run.path("stages", "language")).left_out == ((5, 7), (8, 9))
    third = open_trainer(*KEEP)
    assert third.step == 6 and third.train()
    assert [line["batch"] for line in stage_steps(run, "language")] == [0, 1, 2, 3, 4, 7, 9, 10]


def test_what_cannot_be(open_trainer: Open) -> None:
    trainer = open_trainer(*KEEP)
    assert trainer.train()
    run, stages = trainer.session.run, trainer.session.recipe.section("stages")
    with pytest.raises(ConfigError, match="not from where"):
        plan_back(run, stages, None, None, "1:2")
    for wrong in ("2", "3:3", "5:4", "-1:3"):
        with pytest.raises(ConfigError, match="no range of global batches"):
            ask(trainer, 4, wrong)
    with pytest.raises(ConfigError, match="global batch 3 was learnt from before step 4") as error:
        ask(trainer, 5, "3:6")
    assert "from 4 on" in error.value.fix
    with pytest.raises(InputError, match="no checkpoint at or before step 1") as told:
        ask(trainer, 1, None)
    assert "there are: 2, 4, 6, 8" in told.value.fix
    assert ask(trainer, 0, None).to == 0 and len(ask(trainer, 0, None).later) == 4
    run.path("checkpoints", "sft").mkdir()
    with pytest.raises(ConfigError, match="language, sft have begun"):
        ask(trainer, 4, None)
    assert ask(trainer, 4, None, "language").to == 4
    mark_stage_finished(run, "language")
    with pytest.raises(ConfigError, match="'language' is finished"):
        ask(trainer, 4, None, "language")
    assert isinstance(stages, Stages) and not read_skips(run.path("stages", "language")).back


def test_data_that_ends_too_soon_is_noticed_before_anything_changes(
    open_trainer: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = build.global_batches
    monkeypatch.setattr(build, "global_batches", lambda *how: itertools.islice(truth(*how), 20))
    trainer = open_trainer(*KEEP)
    assert trainer.train()
    with pytest.raises(ConfigError, match="global batches, and the stage has"):
        go_back(trainer, 4, "4:17")
    assert len(complete_checkpoints(trainer.session.run, "language")) == 4


def test_the_plan_says_so(open_trainer: Open, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = open_trainer(*KEEP)
    assert trainer.train()
    where = ["--dry-run", "--from-step", "5", "--skip", "6:7", "--nproc", "1", "--stage", "language", "--out"]
    words = [str(recipe), *open_trainer.words, *KEEP, *where]
    assert train_main([*words, str(tmp_path / "run")]) == 0
    assert "goes back to step 4, without global batches 6..6; set aside: step-000008" in capsys.readouterr().out
    assert len(complete_checkpoints(trainer.session.run, "language")) == 4
    with pytest.raises(InputError, match="no run folder"):
        train_main([*words, str(tmp_path / "nowhere")])
