"""The layouts in which a stage could run on some GPUs, the fastest first. Loads no torch."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import get_args

from ..config import Parallel
from .contracts import Estimate, Gpu, Recompute, StepTime
from .estimate import Layout, Work
from .refuse import Kind, Refusal, check_layout, check_memory, check_waste, refusal

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
    """What was tried. rows: what fits, the fastest first. refused: how many were not possible, by kind of refusal."""

    rows: list[Estimate]
    tried: int
    refused: dict[Kind, int]


def layouts(work: Work, gpu: Gpu, world: int) -> Found:
    """Every layout of a stage on `world` GPUs that is possible and fits."""
    rows: list[Estimate] = []
    refused: Counter[Kind] = Counter()
    tried = 0
    for layout in candidates(work, gpu, world):
        made = judged(work, gpu, world, layout)
        tried += 1
        if isinstance(made, Refusal):
            refused[made.kind] += 1
        else:
            rows.append(made)
    return Found(sorted(rows, key=lambda row: row.time.total), tried, dict(refused))


def judged(work: Work, gpu: Gpu, world: int, layout: Layout) -> Estimate | Refusal:
    """A layout's estimate, or why it cannot be."""
    spec = dataclasses.replace(work.spec, stage=layout.stage(work.spec.stage))
    refused = refusal("layout", check_layout, spec, gpu, world)
    refused = refused or refusal("waste", check_waste, spec, work.load, world)
    if refused:
        return refused
    made = work.estimate(gpu, world, layout)
    return refusal("memory", check_memory, made) or made


def candidates(work: Work, gpu: Gpu, world: int) -> Iterator[Layout]:
    """Layouts with `world` GPUs; those whose sizes do not divide are among them.

    The micro-batch is always one pack. Layers are spread evenly over pipeline stages.
    """
    layers = work.model.decoder.layers
    within = divisors(min(world, gpu.per_node))
    for tp, pp, cp in itertools.product(within, divisors(layers), divisors(world)):
        if world % (tp * pp * cp):
            continue
        chunks = divisors(layers // pp) if pp > 1 else [1]
        for vp, sequence in itertools.product(chunks, [False, True] if tp > 1 else [False]):
            parallel = Parallel(tp=tp, pp=pp, cp=cp, vp=vp, sequence_parallel=sequence)
            yield from (Layout(parallel, recompute) for recompute in get_args(Recompute))


def divisors(number: int) -> list[int]:
    """Ascending."""
    return [n for n in range(1, number + 1) if number % n == 0]


def why_slower(row: Estimate, best: Estimate) -> tuple[str, float]:
    """The cause in which a layout loses most against a faster one (a key of CAUSES), and its seconds a step."""
    lost = {f.name: getattr(row.time, f.name) - getattr(best.time, f.name) for f in dataclasses.fields(StepTime)}
    return max(lost.items(), key=lambda each: each[1])
