"""From a pilot's runs to the whole source: stage after stage, images, seconds, disk and memory, each with its label."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from ..config import CurationConfig
from ..stages.base import Stage
from ..stages.demand import Demand, Size
from .draw import Census
from .fit import Line, fit, fit_growth, spread
from .measure import Measured, Taken
from .rates import Rates
from .scale import IN_PROCESS, workers

MEMORY_NOISE = 4 << 20  # bytes by which the same work's peaks differ from run to run
START_NOISE = 1.0  # seconds by which the starts of two runs differ
Trials = Callable[[Stage, Size], Mapping[str, float]]  # stage, its size in the full run -> seconds for an operation


@dataclasses.dataclass(frozen=True)
class StageForecast:
    """`rate`: images a second of one worker; `memory`: bytes of one worker, None where nobody measured it."""

    stage: str
    images_in: int
    kept: int
    seconds: float
    worker_seconds: float
    rate: float
    label: str
    disk: int
    memory: int | None
    together: int | None
    note: str


@dataclasses.dataclass(frozen=True)
class Forecast:
    """The stages, and seconds and bytes that belong to none of them."""

    stages: list[StageForecast]
    rest_seconds: float
    rest_disk: int


@dataclasses.dataclass(frozen=True)
class Forecaster:
    """`runs`: the pilot's, the smaller first; `lacking`: stages that could not run."""

    config: CurationConfig
    source: Census
    runs: Sequence[Measured]
    lacking: Mapping[str, str]
    rates: Rates
    trials: Trials

    def all(self) -> Forecast:
        """Every stage of the recipe, receiving what the one before leaves."""
        images, stages = self.source.samples, []
        for stage in self.config.stages:
            stages.append(self._stage(stage, images))
            images = stages[-1].kept if stage.judges else images
        samples = self.source.samples
        seconds = fit_growth([(run.samples, run.rest_seconds) for run in self.runs], START_NOISE).at(samples)
        disk = fit([(run.samples, run.rest_disk) for run in self.runs]).at(samples)
        return Forecast(stages, seconds, round(disk))

    def _stage(self, stage: Stage, images: int) -> StageForecast:
        clusters = next((int(found) for one in self.config.stages if (found := getattr(one, "clusters", None))), 1)
        taken = [run.stages[stage.name] for run in self.runs if stage.name in run.stages]
        size = Size(images, len(self.source.shards), clusters, taken[-1].size.dimension if taken else 0)
        demand = stage.demand(size)
        kept = self._kept(stage, taken, size, demand)
        if stage.name in self.lacking or not taken:
            return self._elsewhere(stage, taken, size, kept)
        return self._measured(stage, taken, size, kept)

    def _kept(self, stage: Stage, taken: Sequence[Taken], size: Size, demand: Demand) -> int:
        """The share that the largest run kept, but no more than the stage can."""
        share = taken[-1].kept / taken[-1].received if taken and taken[-1].received else 1.0
        kept = round(share * size.images)
        return kept if demand.most is None else min(kept, demand.most)

    def _elsewhere(self, stage: Stage, taken: Sequence[Taken], size: Size, kept: int) -> StageForecast:
        """A stage that could not run, by a rate from elsewhere."""
        rate = self.rates.of(stage)
        each = rate.per_second * stage.demand(size).devices
        worked = size.images / each
        note = f"not run: {self.lacking.get(stage.name)}; {rate.source}"
        side = min(workers(self.config), size.shards)
        disk = round(rate.bytes_each * size.images)
        seconds = worked / side
        return StageForecast(stage.name, size.images, kept, seconds, worked, each, rate.label, disk, None, None, note)

    def _measured(self, stage: Stage, taken: Sequence[Taken], size: Size, kept: int) -> StageForecast:
        demand = stage.demand(size)
        tried = self.trials(stage, size)
        line = grown(taken, tried)
        kinds = {kind: tried.get(kind, line.each) * work.amount for kind, work in demand.work.items()}
        each = 1 if stage.large_tasks else self.config.executor.tasks_per_command
        commands = -(-max(work.tasks for work in demand.work.values()) // each)
        start, starts = self._starts(taken, demand, commands)
        seconds = line.once + self._seconds(demand, kinds, each, start)
        worked = line.once + sum(kinds.values()) + start * starts
        memory, together = self._memory(taken, demand, min(workers(self.config), commands))
        return StageForecast(
            stage=stage.name,
            images_in=size.images,
            kept=kept,
            seconds=seconds,
            worker_seconds=worked,
            rate=size.images / worked if worked else 0.0,
            label="measured",
            disk=round(fit([(one.received, one.disk) for one in taken]).at(size.images)),
            memory=memory,
            together=together,
            note=self._note(stage, kept),
        )

    def _starts(self, taken: Sequence[Taken], demand: Demand, commands: int) -> tuple[float, int]:
        """Seconds of one start, and how many: one a round in this process, else one for each command."""
        seen = [one.start / one.demand.rounds for one in taken if one.start is not None]
        start = sum(seen) / len(seen) if seen else 0.0
        return start, demand.rounds if self._here else commands + demand.rounds - 1

    def _seconds(self, demand: Demand, kinds: Mapping[str, float], each: int, start: float) -> float:
        """Wall seconds of all work; the kind with the most tasks is what workers are started for again and again."""
        side = workers(self.config)
        widest = max(demand.work, key=lambda kind: demand.work[kind].tasks)
        seconds = start * (demand.rounds if self._here else demand.rounds - 1)
        for kind, work in demand.work.items():
            again = start if kind == widest and not self._here else 0.0
            seconds += spread(kinds[kind], work.tasks, each, side, again)
        return seconds

    @property
    def _here(self) -> bool:
        return self.config.executor.name == IN_PROCESS

    def _memory(self, taken: Sequence[Taken], demand: Demand, commands: int) -> tuple[int | None, int | None]:
        """Of the largest process, and of all of them at a time."""
        seen = [(one, one.peak) for one in taken if one.peak is not None]
        if not seen:
            return None, None
        points = [(one.demand.rows, peak.worker - one.demand.stated) for one, peak in seen]
        grown_to = round(fit_growth(points, MEMORY_NOISE).at(demand.rows) + demand.stated)
        one, peak = seen[-1]
        worker = max(grown_to, peak.worker)  # what was needed once will be needed again
        more = one.commands * (worker - peak.worker) + max(0, commands - one.commands) * worker
        return max(worker, peak.driver), peak.together + more

    def _note(self, stage: Stage, kept: int) -> str:
        after = self.rates.after.get(stage.name)
        if after is None:
            return ""
        return f"then {after.what}: {kept / after.per_second / 3600:.1f} h ({after.source}; published)"


def grown(taken: Sequence[Taken], tried: Mapping[str, float]) -> Line:
    """What a stage's tasks take once, and for each of the work that has no trial; the work that has is taken off."""
    points = []
    for one in taken:
        kinds = one.demand.work
        known = sum(tried[kind] * work.amount for kind, work in kinds.items() if kind in tried)
        unknown = sum(work.amount for kind, work in kinds.items() if kind not in tried)
        points.append((unknown, max(0.0, one.seconds - known)))
    return fit(points)
