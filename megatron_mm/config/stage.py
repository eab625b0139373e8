"""A stage of a recipe that trains: what, on what, for how long, in which layout. Loads no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from megavlm.platform.config import Config, point, points
from megavlm.platform.errors import ConfigError

from ..data.templates import TEMPLATES
from ..parts import Part, axis_of
from ..training.watchers import WATCHERS
from .data import Mixture
from .parallel import Parallel


class Group(Config):
    """What differs for the parameters of one axis, or of a part of it."""

    lr: float | None = None  # at its highest; min_lr keeps its share of it
    weight_decay: float | None = None


class Optimizer(Config):
    """AdamW with warm-up and decay to min_lr."""

    lr: float
    min_lr: float = 0.0
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup_steps: NonNegativeInt = 0
    decay_steps: NonNegativeInt = 0  # wsd: the last so many steps go down to min_lr, all before stay at lr
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0  # global gradient norm
    groups: dict[Part, Group] = {}  # axis or part -> what differs for it; a part's own goes before its axis'

    @model_validator(mode="after")
    def _decays(self) -> Optimizer:
        if (self.schedule == "wsd") != (self.decay_steps > 0):
            raise ConfigError(
                f"schedule {self.schedule} with decay_steps {self.decay_steps}",
                where="optimizer.decay_steps",
                fix="schedule: wsd needs decay_steps of 1 and more, the others none",
            )
        return self

    def of(self, group: str | None) -> tuple[float, float, float]:
        """(lr, min_lr, weight_decay) of a group's parameters; those of no group for None."""
        own = self.groups.get(group, Group()) if group else Group()
        lr = self.lr if own.lr is None else own.lr
        decay = self.weight_decay if own.weight_decay is None else own.weight_decay
        return lr, self.min_lr * (lr / self.lr if self.lr else 1.0), decay


class Loss(Config):
    """How the losses of a global batch's tokens become one number.

    global_token: every target counts alike, wherever it stands. per_microbatch: every packed sequence counts alike, as
    where each rank takes the mean of its micro-batch (with `pack: false`, every sample). sqrt_length: an answer of n
    tokens counts sqrt(n) (--use-loss-scaling of Megatron-LM's multimodal example, InternVL 2.5's square averaging).
    """

    normalisation: Literal["global_token", "per_microbatch", "sqrt_length"] = "global_token"


class Checkpoint(Config):
    """When a stage's state is written, and which checkpoints stay. One is also written at its end, and on request."""

    every: PositiveInt = 1000  # steps
    keep_last: PositiveInt = 1  # the newest so many stay
    keep_every: PositiveInt | None = None  # and, for good, those after each so many steps
    asynchronous: bool | None = None  # written while training goes on; null: where there are GPUs

    @model_validator(mode="after")
    def _written(self) -> Checkpoint:
        if self.keep_every is not None and self.keep_every % self.every:
            raise ConfigError(
                f"keep_every {self.keep_every} is no multiple of every {self.every}: most of those are never written",
                where="checkpoint.keep_every",
                fix=f"set checkpoint.keep_every={max(self.keep_every // self.every, 1) * self.every}",
            )
        return self


class Stage(Config):
    """One node of the recipe's DAG: what is trained, on what, for how long, in which layout."""

    after: list[str] = []  # stages whose weights this one starts from: the last listed wins where both hold a tensor
    start: str | None = None  # without those: a run or a checkpoint in one; axes that it does not hold are drawn
    model: dict[str, Any] = {}  # what differs from the recipe's model here: {tiling: {max_tiles: 1}}
    template: point(TEMPLATES) | None = None  # type: ignore[valid-type]  # in place of data.template
    fresh: list[Part] = []  # drawn anew, whatever those stages made of it
    train: list[Part]  # axes, or parts of them (encoder.sam); all else is frozen
    mixture: Mixture
    steps: PositiveInt
    optimizer: Optimizer
    loss: Loss = Loss()
    parallel: Parallel = Parallel()
    # fp8: the linear layers of encoder and decoder, scaled from earlier steps, by tensor, or by blocks of 128
    precision: Literal["fp32", "bf16", "fp8", "fp8_tensorwise", "fp8_blockwise"] = "bf16"
    recompute: Literal["none", "selective", "full"] = "none"  # activations computed again in the backward pass
    deterministic: bool = False  # the same bits again from the same layout and machines, at the price of speed
    checkpoint: Checkpoint = Checkpoint()
    on_spike: Literal["warn", "stop"] = "warn"  # what a loss far above those before it does, beside an event
    watch: points(WATCHERS) = []  # type: ignore[valid-type]  # what looks at the model while it trains
    evaluate: dict[str, str] = {}  # suite name -> set to evaluate on when the stage is done
    blind: list[str] = []  # suites of `evaluate` that are answered once more with the images exchanged
    optional: bool = False  # runs only when --stage names it: controls and ablations

    @model_validator(mode="after")
    def _starts_once(self) -> Stage:
        if self.after and self.start is not None:
            raise ConfigError(
                f"start {self.start}, and the weights are those of {', '.join(self.after)}",
                where="start",
                fix="leave out either start or after",
            )
        return self

    @model_validator(mode="after")
    def _parts_once(self) -> Stage:
        for key in ("train", "fresh"):
            parts = getattr(self, key)
            if twice := next((part for part in parts if parts.count(part) > 1 or _inside(part, parts)), None):
                raise ConfigError(f"{key}: {twice} is named twice", where=key, fix=f"leave out {twice}")
        if self.fresh and not self.after:
            raise ConfigError(
                f"fresh {self.fresh}, and no stage comes before",
                where="fresh",
                fix="leave it out, or name one in after",
            )
        return self


def _inside(part: str, parts: list[str]) -> bool:
    return part != axis_of(part) and axis_of(part) in parts
