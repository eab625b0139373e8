"""A gate watcher at work: the model answers the suites, and the paired gate compares that with the baseline."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ...checkpoints.listing import checkpoint_path
from ...evaluation.gate import gate_of
from ...evaluation.predictions import read_predictions
from ...evaluation.stage import PLAIN, evaluate_stage, predictions_path
from ..loop import StageTrainer, as_first_says
from .base import Seen

if TYPE_CHECKING:
    from .gate import GateWatcher


class GateLook:
    """Keeps the answers of a look under predictions/STAGE/step-NNNNNN/, whether or not there is such a checkpoint."""

    def __init__(self, watcher: GateWatcher, trainer: StageTrainer) -> None:
        self._watcher, self._trainer = watcher, trainer
        self._sets = watcher.sets(trainer.session.recipe)
        run = trainer.session.run
        paths = {suite: predictions_path(run, watcher.baseline, suite) for suite in self._sets}
        self._before = {suite: as_first_says(read_predictions(path)) for suite, path in paths.items()}

    def __call__(self, step: int) -> Seen:
        """The drop and its interval; every rank works it out from the same answers."""
        session, name, watcher = self._trainer.session, self._trainer.name, self._watcher
        alive, at = partial(session.pulse, "evaluate"), checkpoint_path(session.run, name, step)
        now = evaluate_stage(self._trainer.model, session.run, session.recipe, name, self._sets, PLAIN, alive, at)
        sides = {suite: (self._before[suite], now[suite]) for suite in self._sets}
        found = gate_of(
            sides, max_drop=watcher.max_drop, max_drop_each=watcher.max_drop_each, confidence=watcher.confidence
        )
        figures = {key: getattr(found, key) for key in ("drop", "drop_low", "drop_high", "accuracy_after")}
        return Seen(found.verdict, found.sentence(), figures, {"gate": found.to_json()})
