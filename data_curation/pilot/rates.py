"""Rates from elsewhere, for stages that cannot be tried here: a small table with sources, rates.yaml."""

from __future__ import annotations

from fnmatch import fnmatchcase
from importlib.resources import files
from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat

from megavlm.platform.config import Config
from megavlm.platform.config.tree import leaves, parse_yaml

from ..stages.base import Stage


class Rate(Config):
    """Of one device."""

    model: str
    label: Literal["published", "guess"]
    per_second: PositiveFloat
    bytes_each: NonNegativeFloat
    source: str


class After(Config):
    """Work that a stage leaves to another program."""

    what: str
    per_second: PositiveFloat
    source: str


class Rates(Config):
    """rates.yaml"""

    stages: dict[str, list[Rate]]
    after: dict[str, After]

    def of(self, stage: Stage) -> Rate:
        """The first entry for the stage's model."""
        options = stage.model_dump(mode="json")
        model = next((str(value) for key, value in leaves(options) if key.split(".")[-1] == "model"), "")
        known = self.stages.get(stage.name, []) + self.stages["*"]
        return next(rate for rate in known if fnmatchcase(model, rate.model))


def load_rates() -> Rates:
    """The table that is shipped."""
    text = (files(__package__) / "rates.yaml").read_text()
    rates: Rates = Rates.parse(parse_yaml(text, where="rates.yaml"), where="rates.yaml")
    return rates
