"""What a finished run of a pilot took: from its ledger, its metrics, its folder and drive.py's notes."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megavlm.platform.runs.lines import read_lines

from ..fingerprint import stage_fingerprints, task_fingerprints
from ..pipeline import groups
from ..run import CurationRun
from ..stages.base import Stage
from ..stages.demand import Demand, Size
from .drive import NOTED
from .fit import makespan
from .memory import Peak
from .scale import workers


@dataclasses.dataclass(frozen=True)
class Taken:
    """One stage of one run. `start` are seconds before and between its tasks: None when it was interrupted."""

    size: Size
    demand: Demand
    received: int
    kept: int
    dropped: Mapping[str, int]
    seconds: float  # of all tasks
    start: float | None
    disk: int
    peak: Peak | None
    commands: int  # side by side


@dataclasses.dataclass(frozen=True)
class Measured:
    """One run: samples that its first stage received, wall seconds, and what no stage of it accounts for."""

    shards: int
    samples: int
    seconds: float
    rest_seconds: float
    rest_disk: int
    stages: dict[str, Taken]


def measure(run: CurationRun) -> Measured:
    """Everything, from files."""
    noted = read_lines(run.folder.path(NOTED))
    walls, tasks = Counter[str](), Counter[str]()
    for line in run.folder.metrics():
        walls[line["stage"]] += line["seconds"]
        tasks[line["stage"]] += line["tasks"]
    peaks = _peaks(noted)
    stages = {}
    for stage in run.config.stages:
        stages[stage.name] = _taken(run, stage, walls[stage.name], tasks[stage.name], peaks.get(stage.name))
    attempts = [line for line in noted if "finished" in line]
    total = sum(line["seconds"] for line in attempts)
    disk = bytes_below(run.folder.root)
    return Measured(
        shards=len(run.plan.names),
        samples=next(iter(stages.values())).received,
        seconds=total,
        rest_seconds=max(0.0, total - sum(walls.values())) if len(attempts) == 1 else 0.0,
        rest_disk=disk - sum(taken.disk for taken in stages.values()),
        stages=stages,
    )


def _taken(run: CurationRun, stage: Stage, wall: float, done: int, peak: Peak | None) -> Taken:
    entries = _entries(run, stage)
    total: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    for entry in entries.values():
        total.update({name: entry[name] for name in ("received", "kept", "seconds")})
        dropped.update(entry["dropped"])
    notes: Mapping[str, Any] = next(iter(entries.values()))["notes"] if entries else {}
    size = Size(int(total["received"]), len(run.plan.names), clusters(run), dimension(run), notes)
    demand = stage.demand(size)
    side_by_side = _commands(run, stage, demand, len(entries))
    busy = _busy(run, stage, {task: entry["seconds"] for task, entry in entries.items()}, side_by_side)
    return Taken(
        size=size,
        demand=demand,
        received=size.images,
        kept=int(total["kept"]),
        dropped=dict(dropped),
        seconds=float(total["seconds"]),
        start=max(0.0, wall - busy) if done >= len(entries) else None,
        disk=sum(bytes_below(run.folder.path(*parts)) for parts in ((stage.name,), ("cache", stage.name))),
        peak=peak,
        commands=side_by_side,
    )


def _entries(run: CurationRun, stage: Stage) -> dict[int, dict[str, Any]]:
    """Task -> its facts, in order, of those that count."""
    state = run.ledger.state(stage.name)
    prints = task_fingerprints(run, stage.name, sorted(state), stage_fingerprints(run)[stage.name])
    return {task: state[task].entry() for task, print in prints.items() if state[task].fingerprint == print}


def _commands(run: CurationRun, stage: Stage, demand: Demand, tasks: int) -> int:
    """How many of its commands ran side by side."""
    each = 1 if stage.large_tasks else run.config.executor.tasks_per_command
    shared = tasks if stage.per_shard else max((work.tasks for work in demand.work.values()), default=1)
    return max(1, min(workers(run.config), -(-shared // each)))


def _busy(run: CurationRun, stage: Stage, seconds: Mapping[int, float], commands: int) -> float:
    """Wall seconds in which tasks ran. Of a stage that works in rounds only the sum is known."""
    if not stage.per_shard:
        return sum(seconds.values()) / commands
    commands_of = groups(sorted(seconds), run.config.executor.tasks_per_command)
    return makespan([sum(seconds[task] for task in group) for group in commands_of], commands)


def _peaks(noted: list[dict[str, Any]]) -> dict[str, Peak]:
    peaks: dict[str, Peak] = {}
    for line in noted:
        if "stage" in line:
            peak = peaks.setdefault(line["stage"], Peak())
            for name in ("driver", "worker", "together"):
                setattr(peak, name, max(getattr(peak, name), line[name]))
    return peaks


def clusters(run: CurationRun) -> int:
    """Of the finest level; 1 where nothing is clustered."""
    return next((int(found) for stage in run.config.stages if (found := getattr(stage, "clusters", None))), 1)


def dimension(run: CurationRun) -> int:
    """Of the features; 0 where none were clustered."""
    path = run.folder.path("cluster", "centroids.npy")
    return int(np.load(path, mmap_mode="r", allow_pickle=False).shape[1]) if path.exists() else 0


def bytes_below(folder: Path) -> int:
    """The sizes of all files in a folder; 0 when there is none."""
    return sum(os.lstat(os.path.join(place, name)).st_size for place, _, names in os.walk(folder) for name in names)
