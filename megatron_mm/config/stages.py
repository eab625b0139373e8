"""A recipe's sections `stages` and `run`: stages in their order, and what a run does beside them. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from megavlm.platform.config import Config, points
from megavlm.platform.errors import ConfigError, did_you_mean

from ..training.trackers import TRACKERS
from .gate import GateStage
from .parallel import Parallel
from .stage import Stage


class Run(Config):
    """What a run does beside training, and may do otherwise whenever it goes on."""

    trackers: points(TRACKERS) = []  # type: ignore[valid-type]  # where figures go besides metrics.jsonl


@dataclasses.dataclass(frozen=True)
class Stages:
    """The stages in the order they are written, each after those it names.

    root: those that train. gates: those that judge them. order: the names of all.
    """

    root: dict[str, Stage]
    gates: dict[str, GateStage]
    order: tuple[str, ...]

    @classmethod
    def parse(cls, data: object, where: str = "") -> Stages:
        """Validate every stage; raises ConfigError. One that says whom it `judges` is a gate."""
        if not isinstance(data, dict):
            raise ConfigError("stages is a mapping NAME: stage", where=where)
        root: dict[str, Stage] = {}
        gates: dict[str, GateStage] = {}
        for name, told in data.items():
            if isinstance(told, dict) and "judges" in told:
                gates[name] = GateStage.parse(told, where=f"{where}.{name}")
            else:
                root[name] = Stage.parse(told, where=f"{where}.{name}")
        stages = cls(root, gates, tuple(data))
        for name in stages.order:
            _check_known(name, stages)
        return stages

    def __getitem__(self, name: str) -> Stage:
        """A stage that trains; raises ConfigError for an unknown one, and for a gate, which has no weights."""
        if name in self.gates:
            judges = self.gates[name].judges
            raise ConfigError(f"stage '{name}' trains nothing", where=f"stages.{name}", fix=f"did you mean '{judges}'?")
        if name not in self.root:
            raise ConfigError(f"unknown stage '{name}'", where="stages", fix=did_you_mean(name, self.root))
        return self.root[name]

    def any(self, name: str) -> Stage | GateStage:
        """A stage of either kind; raises ConfigError for an unknown one."""
        return self.gates[name] if name in self.gates else self[name]

    def layout(self, name: str) -> Parallel:
        """A stage's layout; a gate's, where it says none, is the judged stage's as far as answering can be split."""
        stage = self.any(name)
        if isinstance(stage, Stage) or stage.parallel is not None:
            return stage.parallel  # type: ignore[return-value]
        whole = {"cp": 1, "vp": 1, "sequence_parallel": False, "overlap": None}
        return self[stage.judges].parallel.model_copy(update=whole)

    def items(self) -> Iterator[tuple[str, Stage | GateStage]]:
        """All of them, in order."""
        return ((name, self.any(name)) for name in self.order)

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """As they were read, every default filled in."""
        return {name: stage.model_dump(**options) for name, stage in self.items()}


def _check_known(name: str, stages: Stages) -> None:
    """Raises ConfigError for a stage that names one which does not train before it."""
    earlier = [other for other in stages.order[: stages.order.index(name)] if other in stages.root]
    stage = stages.any(name)
    for wanted in [*stage.after, *(_own_baseline(stage) if isinstance(stage, GateStage) else [])]:
        if wanted not in earlier:
            fix = did_you_mean(wanted, earlier)
            what = f"stage '{name}' comes after '{wanted}', which is no earlier stage"
            raise ConfigError(what, where=f"stages.{name}", fix=fix)


def _own_baseline(gate: GateStage) -> Sequence[str]:
    """The baseline, where it is a stage of this run: another run's has a colon or a slash in its name."""
    return [] if set(gate.gate.baseline) & {":", "/"} else [gate.gate.baseline]
