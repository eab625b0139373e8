"""What torchrun runs on every rank: the unfinished stages in order, each trained, saved, evaluated and judged."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version

import torch.distributed as dist

from megavlm.platform.config import load_recipe
from megavlm.platform.errors import MegaVLMError
from megavlm.platform.processes import die_with
from megavlm.platform.runs import Attempt, RunFolder, SaveRequest

from .. import backend
from ..evaluation.stage import BLIND, PLAIN, evaluate_stage, judge_gate
from .loop import Session, StageTrainer
from .stages import chosen, is_finished, mark_stage_finished
from .step import unwrap


def main(argv: Sequence[str]) -> int:
    """`worker RUN STAGE...`; returns the exit code, after telling the attempt what went wrong."""
    die_with(os.getppid())
    run = RunFolder.open(argv[0])
    attempt = run.current_attempt()
    rank = int(os.environ.get("RANK", "0"))
    _log_to(attempt, rank)
    try:
        with SaveRequest(attempt if rank == 0 else None) as request:  # one look into the folder is enough for all
            work(run, attempt, argv[1:], lambda: request.requested)
        backend.shutdown()
        return 0
    except Exception as error:
        traceback.print_exc()
        _tell(attempt, rank, error)
        return 1


def work(run: RunFolder, attempt: Attempt, names: Sequence[str], wants_save: Callable[[], bool]) -> None:
    """Every stage of `names`, until the end or until someone asks to save."""
    recipe = load_recipe(str(run.path("config.yaml")))
    session = Session(run, attempt, recipe, wants_save)
    for name in names:
        trainer = StageTrainer(session, name)
        if session.leads:
            _tell_engine(trainer)
        if not trainer.train():
            if session.leads:
                run.mark_saved(trainer.step)
            return
        evaluate(trainer)
        dist.barrier()
    stages = recipe.section("stages")
    if session.leads and all(is_finished(run, name) for name in chosen(stages)):
        run.mark_finished()


def evaluate(trainer: StageTrainer) -> None:
    """Judge the trained stage on its suites, on some of them blind as well; then its gate; then it is finished.

    A gate that says no is written down like one that passes: the run goes on, and `train` tells it by its exit code.
    """
    session, stage, name = trainer.session, trainer.stage, trainer.name
    model = unwrap(trainer.model)
    evaluate_stage(model, session.run, session.recipe, name, stage.evaluate, PLAIN)
    blind = {suite: stage.evaluate[suite] for suite in stage.blind}
    evaluate_stage(model, session.run, session.recipe, name, blind, BLIND)
    if session.leads:
        gate = judge_gate(session.run, name, stage.gate) if stage.gate else None
        if gate:
            session.attempt.event("gate", stage=name, verdict=gate.verdict, drop=gate.drop)
        mark_stage_finished(session.run, name, step=trainer.step)


def _tell_engine(trainer: StageTrainer) -> None:
    engine = f"megatron-core {version('megatron-core')}"
    trainer.session.attempt.event(
        "engine",
        stage=trainer.name,
        backend=engine,
        collectives=backend.backend_name(),
        tensor_parallel=trainer.stage.parallel.tp,
        pipeline_parallel=trainer.stage.parallel.pp,
        world=dist.get_world_size(),
        from_step=trainer.step,
    )


def _log_to(attempt: Attempt, rank: int) -> None:
    """Everything this process prints, C libraries included, goes to the rank's own log."""
    log = attempt.log_path(rank).open("ab", buffering=0)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)


def _tell(attempt: Attempt, rank: int, error: Exception) -> None:
    """What went wrong, for `train` to raise again."""
    if not isinstance(error, MegaVLMError):
        error = MegaVLMError(f"{type(error).__name__}: {error}", fix=f"read {attempt.log_path(rank)}")
    told = {"what": error.what, "where": error.where, "fix": error.fix, "exit_code": error.exit_code}
    attempt.event("failed", rank=rank, **told)


if __name__ == "__main__":  # megatron-core's checkpoint writer may start processes that import the main module
    sys.exit(main(sys.argv[1:]))
