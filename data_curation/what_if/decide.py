"""The funnel under another configuration: each stage in order decides anew, or lets pass what it once let pass."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from megavlm.platform.errors import InputError
from megavlm.platform.progress import Progress

from ..funnel import funnel
from ..run import CurationRun
from ..stages.base import Outcome, Stage
from .plan import ANEW, AS_IT_WAS, Plan
from .view import View


@dataclasses.dataclass(frozen=True)
class Line:
    """A stage's counts. `not_measured`: samples that get here only now, of which nobody measured what it takes."""

    stage: str
    received: int
    kept: int
    dropped: Mapping[str, int]
    not_measured: int = 0
    decided: str = AS_IT_WAS
    seconds: float = 0.0  # that the run's own tasks took

    def as_json(self) -> dict[str, Any]:
        """The first keys are those of RUN/funnel.json."""
        counts = {"in": self.received, "kept": self.kept, "dropped": dict(self.dropped)}
        return {"stage": self.stage, **counts, "not_measured": self.not_measured, "decided": self.decided}


def present(run: CurationRun) -> list[Line]:
    """The run's own funnel; raises InputError when it is not finished, or not as it is configured now."""
    told = funnel(run)
    undone = [line["stage"] for line in told if not line["done"] and run.config.stages[line["stage"]].judges]
    if undone or not run.folder.finished:
        what = f"stage '{undone[0]}' was not run as config.yaml has it" if undone else "this run is not finished"
        fix = f"megavlm curate run {run.folder.root}/config.yaml --out {run.folder.root}"
        raise InputError(what, where=str(run.folder.root), fix=fix)
    return [Line(line["stage"], line["in"], line["kept"], line["dropped"], seconds=line["seconds"]) for line in told]


@dataclasses.dataclass(frozen=True)
class WhatIf:
    """Funnels of one run under several configurations, which share what they have in common.

    `now` is `present`'s; `scratch` a folder for what stages write; `known` the lines found, by the stage's fingerprint.
    """

    run: CurationRun
    now: list[Line]
    scratch: Path
    bar: Progress[Any]
    known: dict[str, Line] = dataclasses.field(default_factory=dict)

    def funnel(self, plan: Plan) -> list[Line]:
        """In memory are one shard's sidecars, or what the stages themselves hold."""
        if not plan.anew:
            return self.now
        places = {name: self.scratch / plan.prints[name] for name in plan.anew}
        view = View.of(self.run, plan.config, places, self.scratch / "rest")
        lines: list[Line] = []
        for stage, line in zip(plan.config.stages, self.now, strict=True):
            key = plan.prints[stage.name]
            if plan.how[stage.name] != AS_IT_WAS:
                line = self.known.get(key) or self._line(view, stage, lines[-1].kept, plan.how[stage.name])
                self.known[key] = line
            lines.append(line)
        return lines

    def forget(self, left: Sequence[Plan]) -> None:
        """Remove what stages wrote that none of the plans that are left shares: at size each is a pile of files."""
        wanted = {name for plan in left for name in plan.prints.values()}
        for folder in self.scratch.iterdir():
            if folder.name not in wanted:
                shutil.rmtree(folder)

    def _line(self, view: View, stage: Stage, received: int, how: str) -> Line:
        outcome = self._anew(view, stage) if how == ANEW else self._standing(view, stage, received)
        missing = received - outcome.kept - sum(outcome.dropped.values())
        return Line(stage.name, received, outcome.kept, outcome.dropped, missing, how)

    def _anew(self, view: View, stage: Stage) -> Outcome:
        worker = stage.again(view, self.run)
        return self._sum(worker(task) for tasks in stage.rounds(view) for task in tasks)

    def _standing(self, view: View, stage: Stage, received: int) -> Outcome:
        """What a stage said of each sample when it ran."""
        names = [name for name in view.plan.names if view.sidecar_path(stage.name, name).exists()]
        if not names:  # it says nothing of single samples
            return Outcome(received, received)
        return self._sum(_standing(view, stage.name, name) for name in names)

    def _sum(self, outcomes: Iterable[Outcome]) -> Outcome:
        kept, dropped = 0, Counter[str]()
        for outcome in outcomes:
            kept += outcome.kept
            dropped.update(outcome.dropped)
            self.bar.advance()
        return Outcome(kept + dropped.total(), kept, dict(sorted(dropped.items())))


def _standing(view: View, stage: str, shard: str) -> Outcome:
    table = view.sidecar(stage, shard, ["key", "keep", "reason"])
    return Outcome.of(table.filter(pc.is_in(table["key"], value_set=view.survivors(stage, shard))))
