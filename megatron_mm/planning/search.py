"""The layouts in which a stage could run on some GPUs, the fastest first. Loads no torch."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from typing import get_args

from ..config import Parallel
from .contracts import Estimate, Gpu, Recompute, StepTime
from .estimate import Layout, Task
from .refuse import ROOM, Kind, Refusal, check_layout, check_memory, check_waste, refusal
from .timing import step_time

CAUSES = {
    "products": "products with weights",
    "mixing": "attention",
    "moved": "operations bound by memory",
    "tower": "the tower",
    "tensor": "traffic of tensor and context parallelism",
    "pipeline": "sends between pipeline stages",
    "data": "sums of gradients and gathers of weights",
    "bubble": "the pipeline's bubble",
    "update": "the optimizer's update",
    "loading": "waiting for data",
}


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search gave. rows: the fastest of each tp, pp and cp that fits, the fastest first, as many as were wanted.

    tried: layouts. refused: those not possible, by kind of refusal, as far as it was asked. nearest: where none fits,
    the one that lacks least memory.
    """

    rows: list[Estimate]
    tried: int = 0
    refused: dict[Kind, int] = dataclasses.field(default_factory=dict)
    nearest: Refusal | None = None


def layouts(task: Task, gpu: Gpu, world: int, wanted: int = 5) -> Found:
    """The fastest layouts of a stage on `world` GPUs that are possible and fit.

    A micro-batch is always one pack, and layers are spread evenly over pipeline stages. Each layout has as little
    recomputation as fits with some room, and sequence parallelism where rows divide: it keeps less and moves no more
    (arXiv 2205.05198, section 4.2.2).
    """
    search = Search(task, gpu, world)
    for parallel in candidates(task, gpu, world):
        search.add(Layout(parallel, LEAST))
    return search.found(wanted)


class Search:
    """Layouts by their seconds a step, the fastest first; memory is asked only of those whose turn comes."""

    def __init__(self, task: Task, gpu: Gpu, world: int) -> None:
        self._of = (task, gpu, world)
        self._waiting: list[tuple[float, int, Layout]] = []
        self._tried = 0
        self._refused: list[Refusal] = []

    def add(self, layout: Layout) -> None:
        """Take a layout into account, if it is possible."""
        task, gpu, world = self._of
        self._tried += 1
        refused = possible(task, gpu, world, layout)
        if refused:
            self._refused.append(refused)
        else:
            seconds = step_time(task.job(gpu, world, layout)).total
            heapq.heappush(self._waiting, (seconds, self._tried, layout))

    def found(self, wanted: int) -> Found:
        """The fastest of each split, as many as are wanted."""
        rows: dict[tuple[int, int, int], Estimate] = {}
        while self._waiting and len(rows) < wanted:
            *_, layout = heapq.heappop(self._waiting)
            split = (layout.parallel.tp, layout.parallel.pp, layout.parallel.cp)
            made = fitting(*self._of, layout, ROOM) if split not in rows else None
            if isinstance(made, Estimate):
                rows[split] = made
            elif made:
                self._lighten(layout, made)
        counts = Counter(refused.kind for refused in self._refused)
        lacking = [refused for refused in self._refused if refused.estimate]
        nearest = min(lacking, key=_needs, default=None) if not rows else None
        return Found([*rows.values()], self._tried, dict(counts), nearest)

    def _lighten(self, layout: Layout, refused: Refusal) -> None:
        """Let a layout that did not fit wait once more, with more recomputation, where that can help."""
        self._refused.append(refused)
        more = MORE.get(layout.recompute)
        if more and not _stands_too_large(refused):
            self.add(Layout(layout.parallel, more))


LEAST: Recompute = get_args(Recompute)[0]
MORE: dict[Recompute, Recompute] = dict(itertools.pairwise(get_args(Recompute)))


def _needs(refused: Refusal) -> float:
    return refused.estimate.worst.total if refused.estimate else math.inf


def _stands_too_large(refused: Refusal) -> bool:
    """Whether what always stands is more than there is, so that recomputation does not help."""
    of = refused.estimate
    return of is not None and any(
        rank.weights + rank.gradients + rank.optimizer > of.job.gpu.memory for rank in of.ranks
    )


def judged(task: Task, gpu: Gpu, world: int, layout: Layout) -> Estimate | Refusal:
    """A layout's estimate, or why it cannot be."""
    return possible(task, gpu, world, layout) or fitting(task, gpu, world, layout)


def possible(task: Task, gpu: Gpu, world: int, layout: Layout) -> Refusal | None:
    """What there is to be said against a layout, memory aside."""
    spec = dataclasses.replace(task.spec, stage=layout.stage(task.spec.stage))
    refused = refusal("layout", check_layout, spec, gpu, world)
    return refused or refusal("waste", check_waste, spec, task.load, world)


def fitting(task: Task, gpu: Gpu, world: int, layout: Layout, room: float = 1.0) -> Estimate | Refusal:
    """The estimate of a possible layout, or that this part of the memory does not do, with it."""
    made = task.estimate(gpu, world, layout)
    refused = refusal("memory", check_memory, made, room)
    return dataclasses.replace(refused, estimate=made) if refused else made


def candidates(task: Task, gpu: Gpu, world: int) -> Iterator[Parallel]:
    """Layouts that `world` GPUs make whole replicas of, each with a pack at least; whether all else divides is open."""
    layers, length = task.model.decoder.layers, task.spec.stage.mixture.sequence_length
    within, overlap = divisors(min(world, gpu.per_node)), task.layout.parallel.overlap
    for tp, pp, cp in itertools.product(within, divisors(layers), divisors(world)):
        if world % (tp * pp * cp) or world // (tp * pp * cp) > task.load.packs:
            continue
        for vp in divisors(layers // pp) if pp > 1 else [1]:
            sequence = tp > 1 and length // cp % tp == 0
            yield Parallel(tp=tp, pp=pp, cp=cp, vp=vp, sequence_parallel=sequence, overlap=overlap)


def divisors(number: int) -> list[int]:
    """Ascending."""
    return [n for n in range(1, number + 1) if number % n == 0]


def why_slower(row: Estimate, best: Estimate) -> tuple[str, float]:
    """The cause in which a layout loses most against a faster one (a key of CAUSES), and its seconds a step."""
    lost = {f.name: getattr(row.time, f.name) - getattr(best.time, f.name) for f in dataclasses.fields(StepTime)}
    return max(lost.items(), key=lambda each: each[1])
