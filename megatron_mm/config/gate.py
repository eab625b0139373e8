"""The gate: what a training may cost the skills it does not train, and the stage that judges it. Loads no torch."""

from __future__ import annotations

from pydantic import field_validator, model_validator

from megavlm.platform.config import Config
from megavlm.platform.errors import ConfigError

from .parallel import Parallel


class Gate(Config):
    """A stage's answers against those of an earlier one, item by item, suite by suite, and on the suites' average."""

    suites: list[str] = ["text"]  # each counts alike in the average
    baseline: str  # a stage of this run; or RUN:STAGE, or a folder of predictions, of another one
    max_drop: float  # largest tolerated loss of the average, as a fraction
    max_drop_each: float | None = None  # and of every suite by itself; null: the average alone decides
    confidence: float = 0.95

    @field_validator("suites")
    @classmethod
    def _some(cls, suites: list[str]) -> list[str]:
        if not suites or len(set(suites)) < len(suites):
            raise ConfigError(f"suites {suites}: one and more, each once", where="suites", fix="suites: [text]")
        return suites


class GateStage(Config):
    """A stage that trains nothing: it answers what has not been answered, and judges what an earlier stage learnt."""

    judges: str  # the trained stage
    evaluate: dict[str, str] = {}  # suite -> set, beside those that the judged stage answers by itself
    gate: Gate
    protocol: str = "nvlm"  # how benchmarks are asked
    parallel: Parallel | None = None  # null: as the judged stage, without what only training splits
    optional: bool = False  # runs only when --stage names it

    @property
    def after(self) -> list[str]:
        """The stage it waits for; that of the baseline stands before it."""
        return [self.judges]

    @model_validator(mode="after")
    def _compares(self) -> GateStage:
        if self.gate.baseline == self.judges:
            raise ConfigError(
                f"{self.judges} is compared with itself", where="gate.baseline", fix="name an earlier stage"
            )
        return self
