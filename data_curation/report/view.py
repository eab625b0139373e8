"""A run as its report sees it: what the ledger calls done, read from a bounded number of shards."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from megavlm.platform.errors import InputError

from ..config import CurationStages
from ..fingerprint import stage_fingerprints, task_fingerprints
from ..funnel import funnel
from ..run import CurationRun

SHARDS_MEASURED = 500  # sidecars that a distribution is made of; more shards say nothing new and take minutes
SHARDS_SEARCHED = 20  # raw shards that a section reads pictures from
Name = tuple[str, str]  # shard, key
Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class View:
    """`lines` is the funnel. Sidecars of another configuration, left from before, are never shown."""

    run: CurationRun
    lines: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, run: CurationRun) -> View:
        """The run as it stands.

        A finished run says itself what became of it: it may have been made with other versions of the stages.
        """
        told = run.folder.path("funnel.json")
        return cls(run, json.loads(told.read_text()) if run.folder.finished and told.exists() else funnel(run))

    @property
    def stages(self) -> CurationStages:
        """The recipe's."""
        return self.run.config.stages

    def line(self, stage: str) -> Mapping[str, Any]:
        """A stage's counts."""
        return next(line for line in self.lines if line["stage"] == stage)

    def notes(self, stage: str) -> dict[str, Any]:
        """What a stage's first task noted; for stages that `has`."""
        line = self.run.ledger.state(stage, {0: None}).get(0)
        return dict(line.entry().get("notes", {})) if line and line.fingerprint else {}

    def has(self, stage: str) -> bool:
        """Whether the recipe has this stage and some of its sidecars may be read."""
        return stage in self.stages.root and bool(self.shards(stage))

    def shards(self, stage: str) -> list[str]:
        """Names of the shards that a stage is measured on: those that it is done with, at most SHARDS_MEASURED."""
        return spread(self._done[stage], SHARDS_MEASURED)

    def whole(self, stage: str) -> bool:
        """Whether a stage is done with every shard."""
        return len(self._done[stage]) == len(self.run.plan.names)

    @functools.cached_property
    def _done(self) -> dict[str, Sequence[str]]:
        """Names of the shards whose sidecars are those of the present configuration, by stage."""
        if self.run.folder.finished:
            return {stage.name: self.run.plan.names for stage in self.stages}
        hashes, begun = stage_fingerprints(self.run), [bool(line["done"]) for line in self.lines]
        found: dict[str, Sequence[str]] = {}
        for place, stage in enumerate(self.stages):
            if stage.per_shard:
                prints = task_fingerprints(self.run, stage.name, range(len(self.run.plan.names)), hashes[stage.name])
                done = self.run.ledger.done(stage.name, prints)
                found[stage.name] = [self.run.plan.names[task] for task in sorted(done)]
            else:  # a stage begins when those before it are complete
                complete = any(begun[place + 1 :])
                found[stage.name] = self.run.plan.names if complete else []
        return found

    def table(self, stage: str, shard: str, columns: Sequence[str]) -> pa.Table | None:
        """Columns of a sidecar; None where it was removed or damaged, or an earlier version wrote other columns."""
        try:
            found = self.run.sidecar(stage, shard, columns)
        except (OSError, pa.ArrowInvalid, InputError):
            return None
        return found if set(columns) <= set(found.column_names) else None

    def tables(self, stage: str, columns: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
        """Columns of a stage's sidecars, shard by shard, one in memory at a time."""
        for shard in self.shards(stage):
            if (table := self.table(stage, shard, columns)) is not None:
                yield shard, table

    @functools.cached_property
    def judge(self) -> str | None:
        """The last stage that decided on every sample; None while there is none."""
        judges = [stage.name for stage in self.stages if stage.judges and self._done[stage.name]]
        return next((name for name in reversed(judges) if self.whole(name)), None)

    def scope(self, stage: str) -> str:
        """What a reader has to know when not every shard was read."""
        read, there = len(self.shards(stage)), len(self.run.plan.names)
        return "" if read == there else f"Measured on {read:,} of {there:,} shards, evenly spread."


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` items at even distances, the first one among them."""
    if len(items) <= count:
        return list(items)
    return [items[place * len(items) // count] for place in range(count)]


def share(part: float, whole: float) -> str:
    """A part of a whole for people, which breaks over no two lines: "12.5 %"; "0 %" of nothing."""
    return f"{100 * part / whole:.3g}\N{NO-BREAK SPACE}%" if whole else "0\N{NO-BREAK SPACE}%"
