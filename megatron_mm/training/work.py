"""A rank's work: the unfinished stages in order, each trained, saved, evaluated and judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch.distributed as dist

from megavlm.platform.config import load_recipe
from megavlm.platform.runs import Attempt, RunFolder

from .. import backend
from ..evaluation.stage import BLIND, PLAIN, evaluate_stage, judge_gate
from .engine import tell_engine
from .loop import Session, StageTrainer, as_first_says
from .pulse import Pulse
from .stages import chosen, is_finished, mark_stage_finished


def work(run: RunFolder, attempt: Attempt, names: Sequence[str], pulse: Pulse, wants_save: Callable[[], bool]) -> None:
    """Every stage of `names`, until the end or until someone asks to save. The first rank's `names` count."""
    backend.start_processes()
    recipe = load_recipe(str(run.path("config.yaml")))
    session = Session(run, attempt, recipe, pulse, wants_save)
    for name in as_first_says(list(names)):
        pulse("start")
        trainer = StageTrainer(session, name)
        if session.leads:
            tell_engine(trainer)
        if not trainer.train():
            if session.leads:
                _tell_saved(trainer)
            break
        evaluate(trainer)
        dist.barrier()
    if session.leads and all(is_finished(run, name) for name in chosen(recipe.section("stages"))):
        run.mark_finished()
    backend.shutdown()


def evaluate(trainer: StageTrainer) -> None:
    """Judge the trained stage on its suites, on some of them blind as well; then its gate; then it is finished.

    A gate that says no is written down like one that passes: the run goes on, and `train` tells it by its exit code.
    """
    session, stage, name = trainer.session, trainer.stage, trainer.name
    model, alive = trainer.model, partial(session.pulse, "evaluate")
    alive()
    evaluate_stage(model, session.run, session.recipe, name, stage.evaluate, PLAIN, alive)
    blind = {suite: stage.evaluate[suite] for suite in stage.blind}
    evaluate_stage(model, session.run, session.recipe, name, blind, BLIND, alive)
    if session.leads:
        gate = judge_gate(session.run, name, stage.gate) if stage.gate else None
        if gate:
            session.attempt.event("gate", stage=name, verdict=gate.verdict, drop=gate.drop)
        mark_stage_finished(session.run, name, step=trainer.step)


def _tell_saved(trainer: StageTrainer) -> None:
    """The attempt's event decides the exit code; the run's file is for people, and shared by all its attempts."""
    trainer.session.attempt.event("saved_on_request", stage=trainer.name, step=trainer.step)
    trainer.session.run.mark_saved(trainer.step)
