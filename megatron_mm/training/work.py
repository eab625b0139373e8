"""A rank's work: the unfinished stages in order, each trained, saved and evaluated, or a gate that judges one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch.distributed as dist

from megavlm.platform.config import load_recipe
from megavlm.platform.runs import Attempt, RunFolder

from .. import backend
from ..config import GateStage, Stages
from ..evaluation.judging import answer_for_gate
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
    stages: Stages = recipe.section("stages")
    for name in as_first_says(list(names)):
        pulse("start")
        if not (_judge(session, name) if name in stages.gates else _train(session, name)):
            break
        dist.barrier()
    if session.leads and all(is_finished(run, name) for name in chosen(stages)):
        run.mark_finished()
    backend.shutdown()


def _train(session: Session, name: str) -> bool:
    """Returns whether the stage came to its end. Nothing of its model is left when the next one is built."""
    trainer = StageTrainer(session, name)
    if session.leads:
        tell_engine(trainer)
    if trainer.train():
        evaluate(trainer)
        return True
    if session.leads:
        _tell_saved(trainer)
    return False


def _judge(session: Session, name: str) -> bool:
    """A gate that says no is written down like one that passes: `train` tells it by its exit code.

    Returns whether it was judged, and not asked to stop.
    """
    if as_first_says(session.wants_save()):  # what has been answered stands in files; there is nothing else to save
        if session.leads:
            session.attempt.event("saved_on_request", stage=name, step=0)
        return False
    gate: GateStage = session.recipe.section("stages").gates[name]
    answer_for_gate(session.run, session.recipe, name, as_first_says, partial(session.pulse, "evaluate"))
    if session.leads:
        result = judge_gate(session.run, gate.judges, gate.gate, name=name)
        session.attempt.event("gate", stage=name, judges=gate.judges, verdict=result.verdict, drop=result.drop)
        mark_stage_finished(session.run, name, step=0)
    return True


def evaluate(trainer: StageTrainer) -> None:
    """Ask the trained stage its suites, some of them blind as well; then it is finished."""
    session, stage, name = trainer.session, trainer.stage, trainer.name
    model, alive = trainer.model, partial(session.pulse, "evaluate")
    alive()
    evaluate_stage(model, session.run, session.recipe, name, stage.evaluate, PLAIN, alive)
    blind = {suite: stage.evaluate[suite] for suite in stage.blind}
    evaluate_stage(model, session.run, session.recipe, name, blind, BLIND, alive)
    if session.leads:
        mark_stage_finished(session.run, name, step=trainer.step)


def _tell_saved(trainer: StageTrainer) -> None:
    """The attempt's event decides the exit code; the run's file is for people, and shared by all its attempts."""
    trainer.session.attempt.event("saved_on_request", stage=trainer.name, step=trainer.step)
    trainer.session.run.mark_saved(trainer.step)
