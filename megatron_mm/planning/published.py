"""Every full-size recipe on the machines that were published for it: published.yaml. Loads no torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

from pydantic import PositiveFloat, PositiveInt, model_validator

from megavlm.platform.config import Config, load_recipe
from megavlm.platform.config.tree import parse_yaml
from megavlm.platform.errors import ConfigError

from .contracts import Estimate
from .estimate import estimate
from .hardware import find_gpu

FILE = Path(__file__).with_name("published.yaml")


class Content(Config):
    """What a stage's samples hold, where the assumed ones would be wrong; `why` we think so."""

    tokens: PositiveInt
    tiles: PositiveInt | None = None
    why: str


class Plan(Config):
    """Stages of a recipe on some machines, with the time that was published for them together, or for a step."""

    recipe: str
    stages: list[str]
    title: str | None = None
    gpu: str
    gpus: PositiveInt
    hardware: str  # source of the machines
    hours: PositiveFloat | None = None
    step_seconds: PositiveFloat | None = None
    time: str | None = None  # source of the time
    changes: list[str] = []  # overrides of the recipe
    samples: dict[str, Content] = {}

    @model_validator(mode="after")
    def _sourced(self) -> Plan:
        timed = [told for told in (self.hours, self.step_seconds) if told is not None]
        if len(timed) != (self.time is not None):
            fix = "give one of hours and step_seconds, and its source in time"
            raise ConfigError(f"{self.name}: a time without its source, or twice", where="plans", fix=fix)
        return self

    @property
    def name(self) -> str:
        """What the row is called."""
        return self.title or self.recipe


class Row(NamedTuple):
    """A plan with our estimate of each of its stages."""

    plan: Plan
    estimates: list[Estimate]

    @property
    def days(self) -> float:
        """All stages, one after the other."""
        return sum(each.days for each in self.estimates)

    @property
    def too_much(self) -> list[str]:
        """The stages that need more memory than the GPUs have."""
        return [each.job.stage for each in self.estimates if each.worst.total > each.job.gpu.memory]

    @property
    def error(self) -> float | None:
        """Ours over what was published, less 1; None where nothing was."""
        if self.plan.hours is not None:
            return 24 * self.days / self.plan.hours - 1
        if self.plan.step_seconds is not None:
            return self.estimates[0].time.total / self.plan.step_seconds - 1
        return None


@cache
def plans() -> list[Plan]:
    """Every plan of published.yaml, in order."""
    told = parse_yaml(FILE.read_text(), where=str(FILE))
    return [Plan.parse(each, where=f"plans.{k}") for k, each in enumerate(told["plans"])]


def row_of(plan: Plan) -> Row:
    """Our estimates, each in the recipe's own layout."""
    recipe, gpu = load_recipe(plan.recipe, plan.changes), find_gpu(plan.gpu)
    found = []
    for stage in plan.stages:
        content = plan.samples.get(stage)
        sizes = (content.tokens, content.tiles) if content else (None, None)
        found.append(estimate(recipe, stage, gpu, plan.gpus, *sizes))
    return Row(plan, found)
