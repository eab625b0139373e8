"""The drift meter: how far the decoder's word choices went from the baseline's. Loads no torch until it looks."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from megavlm.platform.config import Recipe
from megavlm.platform.errors import ConfigError

from ...data.build import StageData
from ...data.sets import set_folder
from .base import Look, Watcher, require_earlier

if TYPE_CHECKING:
    from ..loop import Session, StageTrainer


class DriftWatcher(Watcher):
    """KL(baseline || now) in nats a token over the answers of some texts: the baseline's likeliest tokens and the rest.

    The baseline's log-probabilities are computed once and kept, so no second model is ever in memory.
    """

    figure: ClassVar[str] = "kl"

    name: Literal["drift"] = "drift"
    baseline: str  # the stage whose weights are the reference
    texts: str  # a set of data.sets; samples with images are passed by
    count: PositiveInt = 2000  # the first so many texts of the set
    length: PositiveInt = 512  # tokens of a text at most; our guess: answers of chats are mostly shorter
    top: PositiveInt = 20  # tokens kept of each place; the others are one bucket
    max_kl: PositiveFloat | None = None  # nats a token; null: measured, never failed

    @model_validator(mode="after")
    def _can_fail(self) -> DriftWatcher:
        if self.on_fail != "warn" and self.max_kl is None:
            raise ConfigError(
                f"on_fail {self.on_fail}, and nothing says when it fails", where="max_kl", fix="set max_kl=0.1"
            )
        return self

    def check(self, recipe: Recipe, stage: str) -> None:
        """Raise ConfigError for a baseline or a set that there is not, or a baseline with another decoder."""
        require_earlier(recipe, stage, self.baseline)
        set_folder(recipe.section("data"), self.texts)
        now, before = (StageData.of(recipe, name).model.decoder for name in (stage, self.baseline))
        if now != before:
            raise ConfigError(
                f"the decoder of '{stage}' is another than that of '{self.baseline}'",
                where="baseline",
                fix="name a stage with the same model.decoder",
            )

    def prepare(self, session: Session, stage: str, resumes: bool) -> None:
        """Measure the baseline with its own checkpoint, before a model is built, where the stage's is none of it."""
        from .baseline import prepare

        prepare(self, session, stage, resumes)

    def open(self, trainer: StageTrainer) -> Look:
        """The baseline's log-probabilities, and how the model's are compared with them."""
        from .baseline import DriftLook

        return DriftLook(self, trainer)

    def limits(self) -> dict[str, float]:
        """The tolerated divergence, if any."""
        return {} if self.max_kl is None else {"kl": self.max_kl}
