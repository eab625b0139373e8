"""The schema of a curation recipe: where raw pairs lie, which stages they pass, and who runs the tasks.

Importing this loads no torch, no FAISS and no image library: stages import what they need when they run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import NonNegativeInt, PositiveInt, RootModel, SerializeAsAny, field_validator

from megavlm.platform.config import Config
from megavlm.platform.errors import ConfigError, InputError, did_you_mean
from megavlm.platform.executor import EXECUTORS, Executor, make

from .sources.base import Source
from .sources.parse import parse_source
from .stages import STAGES
from .stages.base import Stage

if TYPE_CHECKING:
    from .source import Shard


class ExecutorChoice(Config):
    """Who runs the tasks: a name of platform's EXECUTORS."""

    name: str = "local"
    workers: NonNegativeInt = 2
    tasks_per_command: PositiveInt = 16  # shards one worker process takes, so that a model is loaded once for many
    cluster: str | None = None  # a cluster profile's name or file, for the executors that run on one

    def make(self) -> Executor:
        """The executor; raises ConfigError for an unknown name or cluster, before anything has run."""
        options = {} if self.cluster is None else {"cluster": self.cluster}
        return make(EXECUTORS, self.name, "curation.executor", **options)


class CurationStages(RootModel[dict[str, SerializeAsAny[Stage]]]):
    """The stages in the order they are written. The key is the stage's registered name, the value its options."""

    @classmethod
    def parse(cls, data: object, where: str = "") -> CurationStages:
        """Validate every stage's options with the schema registered under its name; raises ConfigError."""
        if not isinstance(data, dict) or not data:
            raise ConfigError("stages is a mapping NAME: options", where=where, fix=f"known: {', '.join(STAGES)}")
        stages = {name: _parse_stage(name, options, f"{where}.{name}") for name, options in data.items()}
        _check_needs(stages, where)
        return cls.model_construct(root=stages)

    def __iter__(self) -> Iterator[Stage]:  # type: ignore[override]
        return iter(self.root.values())

    def __getitem__(self, name: str) -> Stage:
        if name not in self.root:
            raise ConfigError(f"unknown stage '{name}'", where="curation.stages", fix=did_you_mean(name, self.root))
        return self.root[name]

    def judge_before(self, name: str) -> str | None:
        """The stage whose survivors `name` receives: the last judging one before it; None when there is none."""
        names = list(self.root)
        earlier = [other for other in names[: names.index(name)] if self.root[other].judges]
        return earlier[-1] if earlier else None


def _parse_stage(name: str, options: object, where: str) -> Stage:
    if isinstance(options, Stage):
        return options
    stage = STAGES.load(name).parse(options or {}, where=where)
    stage.register(name)
    return stage


def _check_needs(stages: dict[str, Stage], where: str) -> None:
    names = list(stages)
    for index, (name, stage) in enumerate(stages.items()):
        for needed in stage.needs:
            if needed not in names[:index]:
                raise ConfigError(
                    f"stage '{name}' reads what stage '{needed}' writes, and that does not come before it",
                    where=f"{where}.{name}",
                    fix=f"put {needed}: {{}} before {name}",
                )
        exported = next((other for other in names[:index] if stages[other].exports), None)
        if exported and stage.judges:
            raise ConfigError(
                f"stage '{name}' judges samples, and stage '{exported}' before it has copied them already",
                where=f"{where}.{name}",
                fix=f"name {exported} after {name}: null it, and give it again at the end",
            )


class CurationConfig(Config):
    """One curation: source -> stages -> RUN/export."""

    source: SerializeAsAny[Source]
    stages: CurationStages
    executor: ExecutorChoice = ExecutorChoice()
    only: tuple[str, ...] | None = None  # names of the source's shards that are to be curated; null: all

    @field_validator("source", mode="before")
    @classmethod
    def _source(cls, value: object) -> Source:
        return value if isinstance(value, Source) else parse_source(value, where="curation.source")

    @field_validator("stages", mode="before")
    @classmethod
    def _stages(cls, value: object) -> CurationStages:
        return value if isinstance(value, CurationStages) else CurationStages.parse(value, where="curation.stages")

    def find(self, members: Path) -> list[Shard]:
        """The source's shards, or `only` those named; raises InputError for a name that is not there."""
        found = self.source.find(members)
        if self.only is None:
            return found
        names = set(self.only)
        if missing := sorted(names - {shard.name for shard in found}):
            raise InputError(f"the source has no shard '{missing[0]}'", where="curation.only", fix="leave it out")
        return [shard for shard in found if shard.name in names]
