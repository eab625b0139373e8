"""All watchers of a stage that trains: when they look, what is told of it, and what follows when one says no."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch.distributed as dist

from megavlm.platform.storage import write_atomic

from ...checkpoints.listing import PASSED
from ..back import roll_back
from .base import Look, Seen, Watcher, check_watchers, labels
from .moments import give_moments
from .passes import untouched
from .verdict import Stopped, stop

if TYPE_CHECKING:
    from ..loop import Session, StageTrainer


class Watched(NamedTuple):
    """One of the stage's watchers: its number there, and what its figures are called."""

    number: int
    label: str
    watcher: Watcher
    look: Look


def prepare(session: Session, stage: str, resumes: bool) -> None:
    """What the watchers of a stage need before its model is built; every rank calls it."""
    check_watchers(session.recipe, stage)
    for watcher in session.recipe.section("stages")[stage].watch:
        watcher.prepare(session, stage, resumes)


class Watching:
    """Called after every update, on every rank. A step at which nobody is due costs nothing.

    A step *passed* when every watcher that may end the stage looked at it and passed it, undecided being no pass. Where
    one of them may roll back, its checkpoint is written and marked then, and that of step 0 before all others.
    """

    def __init__(self, trainer: StageTrainer) -> None:
        self._trainer = trainer
        watchers: list[Watcher] = trainer.stage.watch
        with untouched(trainer.model):
            self._watched = [
                Watched(number, label, each, each.open(trainer))
                for number, (label, each) in enumerate(zip(labels(watchers), watchers, strict=True))
            ]
        acting = [each for each in self._watched if each.watcher.on_fail != "warn"]
        self._acting = {each.number for each in acting}
        self._keeps = any(each.watcher.on_fail == "roll_back" for each in acting)
        self._passed: set[int] = set()  # of those, who passed the step in hand
        self._failed: list[tuple[Watched, Seen]] = []

    def begin(self) -> None:
        """Before the first update: the weights to come back to when no look passes."""
        if self._keeps and self._trainer.step == 0:
            give_moments(self._trainer.optimizer)
            self._trainer.save(passed=True)

    def look(self, step: int) -> dict[str, float]:
        """Every due watcher's figures, by their names in metrics.jsonl; nothing of the training is changed."""
        self._passed, self._failed = set(), []
        figures: dict[str, float] = {}
        due = [each for each in self._watched if each.watcher.due(step, self._trainer.stage.steps)]
        if due:
            self._trainer.session.pulse("evaluate", step)
            with untouched(self._trainer.model):
                for each in due:
                    figures |= self._one(each, step)
            self._trainer.session.pulse("step", step)
        return figures

    def _one(self, each: Watched, step: int) -> dict[str, float]:
        start = time.perf_counter()
        seen = each.look(step)
        seconds = round(time.perf_counter() - start, 3)
        if seen.verdict == "fail" and each.watcher.on_fail != "warn":
            self._failed.append((each, seen))
        elif seen.verdict == "pass" and each.number in self._acting:
            self._passed.add(each.number)
        if self._trainer.session.leads:
            named = {"stage": self._trainer.name, "step": step, "watcher": each.label, "verdict": seen.verdict}
            named |= {"figure": each.watcher.figure, "limits": each.watcher.limits()}
            told = {"acts": each.number in self._acting, "sentence": seen.sentence, "seconds": seconds, **seen.figures}
            self._trainer.session.attempt.event("watch", **named, **told, **seen.told)
            print(f"{self._trainer.name} step {step}: {each.label}: {seen.sentence}", flush=True)
        key = each.label.replace("-", "_")
        return {f"{key}_{name}": figure for name, figure in seen.figures.items()} | {f"{key}_seconds": seconds}

    @property
    def passed(self) -> bool:
        """Whether the step in hand is one to come back to, so that its checkpoint is to be written and marked."""
        return self._keeps and bool(self._acting) and self._passed == self._acting

    def act(self) -> None:
        """Raise CheckFailed when a watcher that may do so ends the stage here, after saving it or rolling it back."""
        if not self._failed:
            return
        rolling = [found for found in self._failed if found[0].watcher.on_fail == "roll_back"]
        each, seen = (rolling or self._failed)[0]
        back_to = self._roll_back() if rolling else None
        if back_to is None:
            self._trainer.save()
        stopped = Stopped(each.label, self._trainer.step, seen.sentence, back_to)
        if self._trainer.session.leads:
            stop(self._trainer.session.run, self._trainer.name, stopped)
        dist.barrier()
        raise stopped.error(self._trainer.name)

    def _roll_back(self) -> int | None:
        """The step gone back to; None where no checkpoint passed, as where rolling back was asked for later on."""
        trainer = self._trainer
        trainer.finish_saving()
        told: list[Any] = [None]
        if trainer.session.leads:
            told = [roll_back(trainer.session.run, trainer.session.attempt, trainer.name)]
        dist.broadcast_object_list(told, src=0)
        return None if told[0] is None else int(told[0])


def mark_passed(folder: Path) -> None:
    """Before a checkpoint is complete: whoever finds it complete finds the mark, too."""
    write_atomic(folder / PASSED, b"{}")
