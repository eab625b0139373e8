"""A drift watcher at work: the baseline is measured while its weights are at hand, and the looks compare with that."""

from __future__ import annotations

import gc
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from megavlm.platform.errors import MegaVLMError

from ...checkpoints.listing import find_checkpoint
from ...config import Stages
from ...data.build import StageData
from ...data.measure import template
from ...data.sets import open_set
from ...inference.load import load_stage
from ...model import VisionLanguageModel
from ...parts import axis_of
from ..loop import Session, StageTrainer, as_first_says
from .base import Seen
from .passes import untouched
from .reference import About, Reference, about_of, kl, measure, read_reference
from .texts import Texts, read_texts

if TYPE_CHECKING:
    from .drift import DriftWatcher


class Baseline:
    """Where one watcher's reference stands, what it must be of, and how it is measured."""

    def __init__(self, watcher: DriftWatcher, session: Session, stage: str) -> None:
        self._watcher, self._session = watcher, session
        self._spec = StageData.of(session.recipe, stage)
        self.length = self._spec.stage.mixture.sequence_length  # of a pack
        self._data = session.recipe.section("data")  # its own template, as everyone is asked

    @property
    def path(self) -> Path:
        """One file for each baseline."""
        return self._session.run.path("drift", f"{self._watcher.baseline}.safetensors")

    def about(self) -> About:
        """All that decides what is in it."""
        watcher = self._watcher
        return about_of(
            baseline=watcher.baseline,
            checkpoint=find_checkpoint(self._session.run, watcher.baseline).name,
            set=open_set(self._data, watcher.texts).digest,
            tokenizer=self._spec.tokenizer().hash,
            template=self._data.template.model_dump(mode="json"),
            count=watcher.count,
            length=self.most,
            top=watcher.top,
        )

    @property
    def most(self) -> int:
        """Tokens of a text at most: what a pack takes."""
        return min(self._watcher.length, self.length)

    def read(self) -> Reference | None:
        """What is kept, on every rank, if it is of this."""
        return as_first_says(read_reference(self.path, self.about()) if self._session.leads else None)

    def measure(self, model: VisionLanguageModel) -> None:
        """Measure `model` and keep it; every rank calls it."""
        texts, passed = self._texts()
        alive = partial(self._session.pulse, "evaluate")
        found = measure(model, texts, self.length, self._watcher.top, alive)
        if found is not None:
            found.write(self.path, self.about())
            told = {"baseline": self._watcher.baseline, "texts": len(texts), "tokens": texts.rows, "passed_by": passed}
            self._session.attempt.event("drift_baseline", **told)

    def _texts(self) -> tuple[Texts, dict[str, int]]:
        chat = template(self._spec.model, self._spec.tokenizer(), self._data.template)
        return read_texts(open_set(self._data, self._watcher.texts), chat, self._watcher.count, self.most)


def prepare(watcher: DriftWatcher, session: Session, stage: str, resumes: bool) -> None:
    """Measure the baseline from its checkpoint where that has to be; its model is gone before the next is built."""
    stages: Stages = session.recipe.section("stages")
    baseline = Baseline(watcher, session, stage)
    if baseline.read() is not None or (not resumes and starts_as(stages, stage, watcher.baseline)):
        return
    model = load_stage(session.run, session.recipe, watcher.baseline, stages[stage].parallel)
    with untouched(model):
        baseline.measure(model)
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def starts_as(stages: Stages, stage: str, baseline: str) -> bool:
    """Whether the decoder that a stage begins with is still the baseline's: nothing in between trained or drew it."""
    name = stage
    while name != baseline:
        of = stages[name]
        between = [] if name == stage else of.train
        if len(of.after) != 1 or {"decoder", "injection"} & {axis_of(part) for part in [*between, *of.fresh]}:
            return False
        (name,) = of.after
    return True


class DriftLook:
    """Compares a trainer's model with the kept reference, which it measures itself where the stage begins with it."""

    def __init__(self, watcher: DriftWatcher, trainer: StageTrainer) -> None:
        self._watcher, self._trainer = watcher, trainer
        baseline = Baseline(watcher, trainer.session, trainer.name)
        self._length = baseline.length
        found = baseline.read()
        if found is None:
            baseline.measure(trainer.model)
            found = baseline.read()
        if found is None:
            raise MegaVLMError("what was measured of the baseline is not there", where=str(baseline.path))
        self._reference: Reference = found

    def __call__(self, step: int) -> Seen:
        """KL, and whether it is more than is allowed."""
        texts, most = self._reference.texts, self._watcher.max_kl
        alive = partial(self._trainer.session.pulse, "evaluate")
        found = kl(self._trainer.model, self._reference, self._length, alive)
        passed = most is None or found <= most
        allowed = "" if most is None else f", {'within' if passed else 'beyond'} the allowed {most:g}"
        sentence = (
            f"{found:.4g} nats a token away from '{self._watcher.baseline}' over {texts.rows} tokens of "
            f"{len(texts)} texts{allowed}"
        )
        return Seen("pass" if passed else "fail", sentence, {"kl": found}, {})
