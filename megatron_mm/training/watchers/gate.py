"""The gate while a stage trains: does the model still answer what the baseline did? Loads no torch until it looks."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from megavlm.platform.config import Recipe
from megavlm.platform.errors import ConfigError

from ...config.gate import Gate
from ...evaluation.suites import check_suite
from .base import Look, Watcher, require_earlier

if TYPE_CHECKING:
    from ..loop import StageTrainer


class GateWatcher(Gate, Watcher):
    """The paired gate on held-out sets, every so many steps, against the answers of an earlier stage."""

    figure: ClassVar[str] = "drop"

    name: Literal["gate"] = "gate"

    def check(self, recipe: Recipe, stage: str) -> None:
        """Raise ConfigError where the baseline is no earlier stage, or is not asked the suites."""
        require_earlier(recipe, stage, self.baseline)
        self.sets(recipe)

    def sets(self, recipe: Recipe) -> dict[str, str]:
        """Suite -> set: those on which the baseline is asked."""
        asked: dict[str, str] = recipe.section("stages")[self.baseline].evaluate
        for suite in self.suites:
            check_suite(suite)
            if suite not in asked:
                raise ConfigError(
                    f"stage '{self.baseline}' is not asked suite '{suite}', so there is nothing to compare with",
                    where="baseline",
                    fix=f"set stages.{self.baseline}.evaluate.{suite}=SET",
                )
        return {suite: asked[suite] for suite in self.suites}

    def open(self, trainer: StageTrainer) -> Look:
        """The baseline's answers, and how the model is asked for its own."""
        from .answers import GateLook

        return GateLook(self, trainer)

    def limits(self) -> dict[str, float]:
        """The tolerated drop of the average."""
        return {"drop": self.max_drop}
