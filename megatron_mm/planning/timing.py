"""How long a step takes, and of what: the work of the slowest pipeline stage, and what nothing hides. Loads no torch.

- a pipeline works at its slowest stage's pace, and waits once for all the others, a vp-th of it where interleaved;
- gradients are summed in float32 and weights gathered in two bytes, hidden behind one micro-batch as far as it lasts;
  weights that are sharded too (FSDP) are gathered twice for each micro-batch, and hidden as far;
- tiles are shared by all processes (training/encode.py), so that the tower's time is that of a process' share;
- images are decoded by the machine's cores while the step before runs, and waited for as far as that takes longer;
- the optimizer reads and writes OPTIMIZER_BYTES for each number of its shard.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from itertools import chain

from ..costs import Cost
from .contracts import Job, StepTime
from .pieces import learns
from .pipeline import held_layers
from .rates import MEMORY, Constants, Runner, Work, constants, together

OPTIMIZER_BYTES = 34  # read: gradient for its norm, gradient, master weight, two moments; written: these three, bf16
IMAGES = 34.6  # of 1280 x 960 that a core decodes and cuts in a second, as slow as `exact`: benchmarks/decode.md
GRADIENT, WEIGHT = 4, 2  # bytes of a number, as gradients are summed and weights gathered


@dataclasses.dataclass(frozen=True)
class StageWork:
    """Of a pipeline stage: its work on a micro-batch, and how many weights of it learn."""

    work: Work
    weights: float

    def times(self, count: int) -> StageWork:
        """Of so many alike."""
        return StageWork(self.work.times(count), count * self.weights)


def step_time(job: Job, of: Constants | None = None) -> StepTime:
    """Seconds of a step on the slowest rank, by cause."""
    run = Runner(job, of or constants())
    stages = stage_works(run)
    slowest = max(stages, key=lambda stage: stage.work.total)
    steps = slowest.work.times(job.micro_batches)
    waiting = sum(stage.work.total for stage in stages) - slowest.work.total
    time = StepTime(
        products=steps.products,
        mixing=steps.mixing,
        moved=steps.moved,
        tower=_tower(run),
        tensor=steps.tensor,
        pipeline=_sends(run),
        data=_data(run, slowest),
        bubble=waiting / job.parallel.vp,
        update=_update(run, slowest.weights),
        loading=0.0,
    )
    return dataclasses.replace(time, loading=max(0.0, _decoding(job) - time.total))


def stage_works(run: Runner) -> list[StageWork]:
    """Of each pipeline stage."""
    job, pieces = run.job, run.job.pieces
    kinds, kind_of = pieces.alike
    layers = [_layer(run, *kind) for kind in kinds]
    held = [Counter(kind_of[number] for number in chain(*chunks)) for chunks in held_layers(job.parallel, len(kind_of))]
    works = [[layers[kind].times(count) for kind, count in counts.items()] for counts in held]
    trained, own = learns("decoder", job.train), learns("objectives", job.train)
    works[0].append(_end(run, pieces.embedding, trained, False))
    works[-1] += [_end(run, pieces.head, trained, bool(job.train)), _end(run, pieces.objectives, own, bool(job.train))]
    return [StageWork(together(each.work for each in stage), sum(each.weights for each in stage)) for stage in works]


def _layer(run: Runner, cost: Cost, added: Cost) -> StageWork:
    """Of a layer of the decoder; what the injection adds may learn where the rest does not, and the other way."""
    job = run.job
    trained, adding = learns("decoder", job.train), learns("injection", job.train)
    work = run.work(cost, trained, bool(job.train), job.recompute)
    more = Work(products=added.products * (adding - trained) / run.product_rate())
    return StageWork(work + more, trained * (cost.weights - added.weights) + adding * added.weights)


def _end(run: Runner, cost: Cost, trained: bool, through: bool) -> StageWork:
    return StageWork(run.work(cost, trained, through, precision="bf16"), trained * cost.weights)


def _tower(run: Runner) -> float:
    """Encoder and connector over this process' share of the global batch's tiles, and a teacher's look at them."""
    job, pieces = run.job, run.job.pieces
    share = math.ceil(job.load.packs * job.load.of.tiles * job.parallel.tp / job.world)
    runs = pieces.tower_runs
    learnt = [learns(cost.part, job.train) for cost, _ in runs]
    reached = [any(learnt[: place + 1]) for place in range(len(learnt))]  # gradients come as far as what learns first
    works = [
        run.work(cost, trained, through, job.recompute if through else "none", "bf16").times(count)
        for (cost, count), trained, through in zip(runs, learnt, reached, strict=True)
    ]
    works += [run.work(cost, False, False, "none", "bf16") for cost in pieces.teacher]
    return share * together(works).total


def _sends(run: Runner) -> float:
    """Exposed seconds of what a pipeline stage sends there and back; interleaved ones send while they compute."""
    job = run.job
    if job.parallel.pp == 1 or job.parallel.vp > 1:
        return 0.0
    rate = job.gpu.link if job.world <= job.gpu.per_node else job.gpu.network
    return 2 * job.micro_batches * job.pieces.hidden / (rate * run.of.links)


def _data(run: Runner, stage: StageWork) -> float:
    """Exposed seconds of gradient sums and weight gathers; the tower's gradients are summed when all is done."""
    job = run.job
    ranks, tower = job.dp * job.parallel.cp, _tower_weights(job)
    rounds, gathers = (job.micro_batches, 2) if job.fsdp > 1 else (1, 1)
    taken = run.ring((gathers * WEIGHT + GRADIENT) * stage.weights, ranks, job.parallel.tp)
    hidden = stage.work.total if job.overlap else 0.0
    late = run.ring((WEIGHT + GRADIENT) * tower, ranks * job.parallel.pp, job.parallel.tp)
    return rounds * max(0.0, taken - hidden) + late


def _update(run: Runner, weights: float) -> float:
    """Seconds of the optimizer on its shard, in which all of a replica's processes have their part."""
    job = run.job
    shard = (weights + _tower_weights(job)) / (job.dp * job.parallel.cp)
    return shard * OPTIMIZER_BYTES / (job.gpu.bandwidth * MEMORY)


def _decoding(job: Job) -> float:
    """Seconds in which a machine's cores decode its share of the images, while the step before runs."""
    images = sum(count for _, count in job.load.amounts.cuts)
    return images / (job.world * job.gpu.cores * IMAGES)


def _tower_weights(job: Job) -> float:
    return float(sum(cost.weights for cost in job.pieces.tower if learns(cost.part, job.train)))
