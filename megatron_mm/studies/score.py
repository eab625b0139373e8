"""A score of a study: what is read from a finished training. Loads no torch."""

from __future__ import annotations

from pydantic import PositiveInt, model_validator

from megavlm.platform.config import Config
from megavlm.platform.errors import ConfigError


class Score(Config):
    """One column: how many items of a suite were answered right, or the last value of a figure of metrics.jsonl."""

    stage: str  # of the run
    suite: str | None = None
    kind: str | None = None  # of the suite's questions, these alone
    blind: bool = False  # the answers given to exchanged images
    minus: str | None = None  # an earlier stage: by how much more was answered right than after that, in paired items
    metric: str | None = None  # such as loss: the mean of the stage's last `over` steps
    over: PositiveInt = 10

    @property
    def stages(self) -> list[str]:
        """The stages whose answers it needs."""
        return [self.stage, self.minus] if self.minus else [self.stage]

    @model_validator(mode="after")
    def _one_source(self) -> Score:
        if (self.suite is None) == (self.metric is None):
            raise ConfigError(
                "a score is read from a suite's answers or from a metric: " + ("both" if self.suite else "neither"),
                where="suite",
                fix="give either suite: NAME or metric: NAME",
            )
        if self.metric and (self.kind or self.blind or self.minus):
            what = "kind, blind and minus are of a suite's answers"
            raise ConfigError(what, where="metric", fix="leave them out")
        if self.minus == self.stage:
            raise ConfigError(f"'{self.stage}' minus itself is nothing", where="minus", fix="name an earlier stage")
        return self
