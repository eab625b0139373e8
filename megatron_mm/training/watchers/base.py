"""What a watcher is: its options, what it needs, and what it says of a look. Loads no torch."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import PositiveInt

from megavlm.platform.config import Config, Recipe
from megavlm.platform.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from ..loop import Session, StageTrainer

Verdict = Literal["pass", "fail", "undecided"]
Action = Literal["warn", "stop", "roll_back"]


@dataclasses.dataclass(frozen=True)
class Seen:
    """What one look came to, and that in words; `figures` for metrics.jsonl; `told`: what else the event says."""

    verdict: Verdict
    sentence: str
    figures: dict[str, float]
    told: dict[str, Any]


class Look(Protocol):
    """A watcher of one stage that trains. Called on every rank with the same step (updates done)."""

    def __call__(self, step: int) -> Seen:
        """Look at the model; all ranks are told the same."""


class Watcher(Config):
    """Base of the watchers: when they look, and what a look that fails does."""

    figure: ClassVar[str]  # the one of its figures that says it all

    name: str
    every: PositiveInt  # steps; also after the last one
    on_fail: Action = "warn"  # stop: save and end the stage; roll_back: to the newest checkpoint that passed, and end

    @abstractmethod
    def check(self, recipe: Recipe, stage: str) -> None:
        """Raise ConfigError where the stage `stage` of the recipe cannot be watched so. Loads no torch."""

    def prepare(self, session: Session, stage: str, resumes: bool) -> None:
        """Do what must be done before the stage's model is built. `resumes`: from a checkpoint of its own."""

    @abstractmethod
    def open(self, trainer: StageTrainer) -> Look:
        """What looks at this trainer's model; raises InputError where something to compare with is missing."""

    @abstractmethod
    def limits(self) -> dict[str, float]:
        """The thresholds, by the name of the figure that each bounds."""

    def due(self, step: int, steps: int) -> bool:
        """Whether it looks after update `step` of `steps`."""
        return step % self.every == 0 or step == steps


def check_watchers(recipe: Recipe, stage: str) -> None:
    """Raise ConfigError, with its key, for the first watcher of a stage that cannot watch it. Loads no torch."""
    for number, watcher in enumerate(recipe.section("stages")[stage].watch):
        try:
            watcher.check(recipe, stage)
        except ConfigError as error:
            where = f"stages.{stage}.watch.{number}.{error.where}"
            raise ConfigError(error.what, where=where, fix=error.fix) from None


def require_earlier(recipe: Recipe, stage: str, baseline: str) -> None:
    """Raise ConfigError unless `baseline` is a stage that trains before `stage`."""
    stages = recipe.section("stages")
    earlier = [name for name in stages.root if name != stage]
    earlier = earlier[: list(stages.root).index(stage)]
    if baseline not in earlier:
        fix = did_you_mean(baseline, earlier) if earlier else "watch a later stage"
        raise ConfigError(f"the baseline '{baseline}' is no earlier stage", where="baseline", fix=fix)


def labels(watchers: Iterable[Watcher]) -> Iterator[str]:
    """`drift`, `gate`, and `drift-2` for a second one of its kind."""
    seen: dict[str, int] = {}
    for each in watchers:
        seen[each.name] = seen.get(each.name, 0) + 1
        yield each.name if seen[each.name] == 1 else f"{each.name}-{seen[each.name]}"
