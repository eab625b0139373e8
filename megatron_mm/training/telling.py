"""What is told of every step of a stage: metrics, the line for people, trackers; and when a step says to stop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from megavlm.platform.errors import MegaVLMError
from megavlm.platform.runs import RunFolder

from ..contracts import StepBatch
from ..data.trace import samples_of
from .console import step_line
from .metrics import Meter, Moment, finite
from .outcome import stage_steps
from .ranks import Ranks, device_name, whole_memory
from .spikes import WINDOW, SpikeDetector
from .step import StepResult
from .trackers.base import Trackers

if TYPE_CHECKING:
    from .loop import StageTrainer

MOST_SKIPPED = 10  # updates skipped in a row for a gradient that is not finite
NAMED = 16  # samples that an event names


class Teller:
    """Called with every step on every rank. The first rank writes; what ends the training is raised on all of them."""

    def __init__(self, trainer: StageTrainer, before: Sequence[float]) -> None:
        session, self._trainer = trainer.session, trainer
        world = dist.get_world_size()
        self.meter = Meter(trainer.name, trainer.stage, trainer.spec.model, world, device_name(), whole_memory())
        self._spikes = SpikeDetector(before)
        run_options = session.recipe.sections.get("run")
        specs = run_options.trackers if session.leads and run_options else []
        self._trackers = Trackers(specs, session.run, trainer.name, trainer.step, session.attempt.event)
        self._skipped = 0

    def step(
        self, at: Moment, batch: StepBatch, result: StepResult, ranks: Ranks, watched: Mapping[str, float]
    ) -> None:
        """Tell one step, with what watchers measured after it.

        Raises MegaVLMError when updates were skipped too often, or a spike is to stop the stage.
        """
        self._trainer.session.pulse("step", at.step)
        if self._trainer.session.leads:
            told = self.meter.line(at, result, batch.amounts, ranks)
            told |= {name: finite(figure) for name, figure in watched.items()}
            self._trainer.session.run.append_metrics(told)
            print(f"{told['stage']} {step_line(told, self._trainer.stage.steps)}", flush=True)
            self._trackers.log(told)
        self._skipped = 0 if result.updated and math.isfinite(result.loss) else self._skipped + 1
        if self._skipped:
            self._tell_skipped(at, batch, result)
        if self._skipped >= MOST_SKIPPED:
            raise self._not_finite(at, result)
        self._tell_spike(at, batch, result)

    def close(self) -> None:
        """The stage is over, or stops for a while."""
        self._trackers.close()

    def _tell_skipped(self, at: Moment, batch: StepBatch, result: StepResult) -> None:
        """Which packs it were, as far as losses tell; where only a gradient overflowed, the whole batch."""
        bad = (
            []
            if math.isfinite(result.loss)
            else _everywhere([row for k in result.not_finite if (row := batch.rows[k]) is not None])
        )
        self._event("skipped_update", at, batch, bad, loss=finite(result.loss), grad_norm=finite(result.grad_norm))

    def _tell_spike(self, at: Moment, batch: StepBatch, result: StepResult) -> None:
        spike = self._spikes.feed(result.loss)
        if spike is None:
            return
        figures = {
            "loss": spike.loss,
            "median": spike.median,
            "sigma": spike.sigma,
            "grad_norm": finite(result.grad_norm),
        }
        self._event("spike", at, batch, [], **figures)
        if self._trainer.stage.on_spike == "stop":
            raise MegaVLMError(
                f"loss {spike.loss:.4f} is out of line with the steps before it: median {spike.median:.4f}, "
                f"robust sigma {spike.sigma:.4f}",
                where=self._place(at),
                fix=f"{self._step_back(at, batch)}; stages.{self._trainer.name}.on_spike=warn goes on regardless",
            )

    def _not_finite(self, at: Moment, result: StepResult) -> MegaVLMError:
        return MegaVLMError(
            f"{self._skipped} updates in a row had a gradient that is not finite, the last with loss {result.loss} and "
            f"gradient norm {result.grad_norm}",
            where=self._place(at),
            fix=f"look at the events `skipped_update` for the samples where it began; then lower "
            f"stages.{self._trainer.name}.optimizer.lr or optimizer.clip, or leave batches out with --from-step and "
            f"--skip; {self._trainer.saved_state()}",
        )

    def _event(self, kind: str, at: Moment, batch: StepBatch, bad: Sequence[int], **figures: Any) -> None:
        """An event with the rows and the first samples of the packs `bad`, or of the whole batch."""
        if not self._trainer.session.leads:
            return
        of = batch.amounts
        rows = list(bad) or (list(of.rows) if of else [])
        named = samples_of(self._trainer.manifest, self._trainer.spec.folders(), rows, NAMED)
        told = {"rows": rows[:NAMED], "packs": len(rows), "samples": named}
        place = {"stage": self._trainer.name, "step": at.step, "batch": of.batch if of else None}
        self._trainer.session.attempt.event(kind, **place, **figures, **told)

    def _place(self, at: Moment) -> str:
        return f"stage '{self._trainer.name}', step {at.step}"

    def _step_back(self, at: Moment, batch: StepBatch) -> str:
        number = batch.amounts.batch if batch.amounts else at.step - 1
        words = f"--from-step {at.step - 1} --skip {number}:{number + 1}"
        return f"`megavlm train RECIPE --stage {self._trainer.name} {words}` leaves this global batch out"


def losses_before(run: RunFolder, stage: str, step: int) -> list[float]:
    """The losses of the stage's last steps before it goes on behind `step`."""
    losses = [line["loss"] for line in stage_steps(run, stage) if line["step"] <= step]
    return [loss for loss in losses if loss is not None][-WINDOW:]


def _everywhere(rows: Sequence[int]) -> list[int]:
    """The rows that any rank names; every rank calls it."""
    found: list[list[int]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, list(rows))
    return sorted({row for some in found for row in some})
