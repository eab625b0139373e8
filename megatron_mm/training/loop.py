"""One stage of training: the loop over global batches, with its checkpoints, metrics and heartbeats."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from megatron.core.optimizer import MegatronOptimizer

from megavlm.platform.config import Recipe
from megavlm.platform.errors import MegaVLMError
from megavlm.platform.runs import Attempt, RunFolder

from .. import backend
from ..checkpoints.listing import checkpoint_path, latest, resolve, step_of
from ..checkpoints.weights import fill
from ..contracts import StepBatch
from ..conversion.start import fill_parts
from ..conversion.teacher import fill_teacher
from ..data.build import StageData
from ..data.loader import PackLoader, open_loader
from ..data.manifest import Manifest
from ..data.skips import read_skips
from ..model import VisionLanguageModel, build_model
from ..objectives.loss import Sum
from ..parts import narrowest
from . import checkpoint
from .checks import teacher_folder
from .failures import explained
from .metrics import Moment
from .overlap import overlaps
from .pulse import Pulse
from .ranks import compare
from .step import train_step
from .telling import Teller, losses_before
from .watchers.verdict import refuse_stopped
from .watchers.watching import Watching, mark_passed, prepare
from .wrapping import make_optimizer, set_rate, wrap

T = TypeVar("T")


@dataclasses.dataclass
class Session:
    """What the stages of one worker share. `wants_save` is asked between steps."""

    run: RunFolder
    attempt: Attempt
    recipe: Recipe
    pulse: Pulse
    wants_save: Callable[[], bool]

    @property
    def leads(self) -> bool:
        """Whether this rank writes for all."""
        return dist.get_rank() == 0


class StageTrainer:
    """A stage's model and optimizer on this rank, at the step its newest checkpoint left."""

    def __init__(self, session: Session, name: str) -> None:
        self.session, self.name = session, name
        self.spec = StageData.of(session.recipe, name)
        stage = self.stage = self.spec.stage
        newest = as_first_says(latest(session.run, name))
        refuse_stopped(session.run, name, stage)
        prepare(session, name, resumes=newest is not None)
        backend.init_distributed(stage.parallel, self.spec.seed, stage.deterministic)
        model = build_model(self.spec.model, backend.build_context(stage.parallel, stage.precision, stage.recompute))
        self._first_weights(model, resumes=newest is not None)
        model.freeze(stage.train)
        self.wrapped = wrap(model, stage.precision, overlaps(stage.parallel))
        self.optimizer: MegatronOptimizer = make_optimizer(self.wrapped, stage.optimizer, stage.precision)
        self.step = checkpoint.load(newest, model, self.optimizer) if newest else 0
        self.saver = checkpoint.Saver(session.run, name, stage.checkpoint)
        chosen = stage.checkpoint.asynchronous
        self.asynchronous = backend.device().type == "cuda" if chosen is None else chosen
        self.batch: StepBatch | None = None  # the one in hand
        self.manifest = Manifest(session.run.path("stages", name, "packs"))
        self.teller = Teller(self, as_first_says(losses_before(session.run, name, self.step)))
        self.watching = Watching(self)

    @property
    def model(self) -> VisionLanguageModel:
        """This rank's part of the model, every weight up to date."""
        return self.wrapped.settled()

    def _first_weights(self, model: VisionLanguageModel, resumes: bool) -> None:
        """Those of the stages this one comes after; without any, of its `start`. What neither has is drawn."""
        if resumes:
            return
        sources = as_first_says([latest(self.session.run, earlier) for earlier in self.stage.after])
        if not sources or self.stage.fresh:
            backend.initialise(model, self.spec.seed)
        if sources:
            fill(model, *(_found(source, self.stage.after) for source in sources), skip=self._is_fresh)
        elif self.stage.start:
            fill_parts(model, as_first_says(resolve(self.stage.start).checkpoint))
        folder = teacher_folder(self.spec.model)
        if folder is not None and (not sources or self._is_fresh("objectives", "teacher")):
            fill_teacher(model, folder)

    def _is_fresh(self, axis: str, inside: str) -> bool:
        return narrowest(self.stage.fresh, axis, inside) is not None

    def train(self) -> bool:
        """Train to the stage's last step; False when it was saved before that because someone asked."""
        with explained(self):
            try:
                return self._train()
            finally:
                self.teller.close()

    def _train(self) -> bool:
        objective = Sum(self.spec.model)
        if self._agreed_to_stop():  # it took long enough to come here; what there is to save was loaded from disk
            return False
        self.session.pulse("step", self.step)
        self.watching.begin()
        last_wait = time.perf_counter()
        loader, place = self._loader(), (self.wrapped.lookers.seat, self._packs_at_a_time())
        for made in loader.batches(self.step, self.stage.steps, *place):
            self.batch, start = made, time.perf_counter()
            batch = loader.settled(made, agreed, *place)
            rate = set_rate(self.optimizer, self.stage.optimizer, self.step, self.stage.steps)
            result = train_step(self.wrapped, self.optimizer, batch, objective)
            self.step += 1
            waited = start - last_wait
            at = Moment(self.step, rate, time.perf_counter() - start, waited, self.session.attempt.number)
            ranks = compare(self.session.wants_save(), result.own + waited)
            self.teller.step(at, batch, result, ranks, self.watching.look(self.step))
            self.watching.act()
            self._save(last=ranks.stop or self.step == self.stage.steps, passed=self.watching.passed)
            if ranks.stop and self.step < self.stage.steps:
                return False
            last_wait = time.perf_counter()
        return True

    def _loader(self) -> PackLoader:
        skips = as_first_says(read_skips(self.session.run.path("stages", self.name)))
        return open_loader(self.spec, self.manifest, self.session.attempt.event, skips)

    def _packs_at_a_time(self) -> int:
        """An interleaved pipeline goes through its packs in groups of as many as it has stages."""
        return self.stage.parallel.pp if self.stage.parallel.vp > 1 else 1

    def saved_state(self) -> str:
        """What there is to go on from, in words."""
        newest = latest(self.session.run, self.name)
        if newest is None:
            return "no checkpoint of this stage yet: the same command begins it anew"
        return f"the last checkpoint is that after step {step_of(newest)}: the same command goes on from there"

    def _agreed_to_stop(self) -> bool:
        """Whether any rank was asked to save: all of them must save at the same step."""
        wish = torch.tensor(int(self.session.wants_save()), device=backend.device())
        dist.all_reduce(wish, op=dist.ReduceOp.MAX)
        return bool(wish)

    def _save(self, last: bool, passed: bool) -> None:
        """Begin a checkpoint where one is due, the last one being waited for; complete the one that is on disk."""
        if last or passed or self.step % self.stage.checkpoint.every == 0:
            self.save(passed, wait=last or not self.asynchronous)
        else:
            self._tell_saved(self.saver.finish(wait=False))

    def save(self, passed: bool = False, wait: bool = True) -> None:
        """Begin a checkpoint of what is there now, and with `wait` complete it. `passed`: one to roll back to."""
        self.session.pulse("save", self.step)
        self._tell_saved(self.saver.start(self.step, self.model, self.optimizer))
        if passed and self.session.leads:
            mark_passed(checkpoint_path(self.session.run, self.name, self.step))
        self._tell_saved(self.saver.finish(wait=wait))
        self.session.pulse("step", self.step)

    def finish_saving(self) -> None:
        """Wait for the checkpoint that is under way, if one is."""
        self._tell_saved(self.saver.finish(wait=True))

    def _tell_saved(self, saved: checkpoint.Saved | None) -> None:
        """`seconds` are those that training stood for it, `written` those until it was on disk."""
        if saved and self.session.leads:
            times = {"seconds": round(saved.stood, 3), "written": round(saved.seconds, 3)}
            self.session.attempt.event("saved", stage=self.name, step=saved.step, **times, folder=saved.folder.name)


def as_first_says(value: T) -> T:
    """The first rank's `value`, on every rank. Each calls it.

    What a rank reads of the run folder decides what it does, and a shared file system may show one machine an older
    listing than another: ranks that went on from different checkpoints would train nonsense without a word.
    """
    told = [value]
    dist.broadcast_object_list(told, src=0)
    return told[0]


def agreed(problems: Collection[tuple[int, int]]) -> set[tuple[int, int]]:
    """What turned out unreadable anywhere: those who read a sample's text and who decode its image are not the same."""
    some = torch.tensor(len(problems), device=backend.device())
    dist.all_reduce(some)
    if not some:
        return set()
    found: list[list[tuple[int, int]]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, list(problems))
    return {problem for each in found for problem in each}


def _found(source: Path | None, after: list[str]) -> Path:
    if source is None:
        raise MegaVLMError(f"a stage this one comes after has no checkpoint: {after}", fix="train it first")
    return source
