"""How long a step takes: operations over rates, and what of communication and waiting nothing hides. Loads no torch.

A rate is a peak of the data sheet times a fitted part of it (constants.yaml); all else follows from the layout:

- a trained product runs three times (forward, gradient of the input, gradient of the weights), attention's two products
  three and a half (FlashAttention does seven for the two), what moves bytes three; recomputation adds a forward pass;
- a sum over t tensor-parallel processes moves 2 (t - 1) / t of the tensor (2104.04473, section 3.2), in the forward and
  in the backward pass; where it is overlapped with products, as in t rounds, one t-th stays exposed;
- a pipeline of p stages works at its slowest one's pace, and waits once for all others, a vp-th of it if interleaved;
- gradients are summed in float32 and weights gathered in two bytes, hidden behind the last backward pass and the first
  forward pass as far as these last; sharded weights (FSDP) are gathered twice for each micro-batch, as far hidden;
- the optimizer reads and writes OPTIMIZER_BYTES for each number of its shard.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import yaml

from ..costs import Cost
from ..parts import axis_of
from .contracts import Gpu, Job, StepTime

OPTIMIZER_BYTES = 34  # read: gradient for its norm, gradient, master weight, two moments; written: these three, bf16
GRADIENT, WEIGHT = 4, 2  # bytes of a number, as gradients are summed and weights gathered
MIXING_BACK, MOVED_BACK = 2.5, 2.0  # backward pass over forward pass
# recomputation -> parts of the forward pass that run again: products, attention, moved bytes, traffic
AGAIN = {"none": (0, 0, 0, 0), "selective": (0, 1, 0, 0), "every_other": (0.5, 0, 1, 0.5), "full": (1, 1, 1, 1)}


@dataclasses.dataclass(frozen=True)
class Constants:
    """Which part of a peak is reached: the fitted numbers, five and no more."""

    products_bf16: float
    products_fp8: float
    mixing: float
    memory: float
    links: float


@cache
def constants() -> Constants:
    """Those of constants.yaml."""
    return Constants(**yaml.safe_load(Path(__file__).with_name("constants.yaml").read_text()))


@dataclasses.dataclass(frozen=True)
class Work:
    """Seconds on one process, forward and backward, by cause; `tensor` is exposed traffic."""

    products: float = 0.0
    mixing: float = 0.0
    moved: float = 0.0
    tensor: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def times(self, count: float) -> Work:
        """So often."""
        return Work(*(count * each for each in dataclasses.astuple(self)))

    @property
    def total(self) -> float:
        """Seconds in all."""
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Runner:
    """What turns costs into seconds: a job and the constants."""

    job: Job
    of: Constants

    def work(self, cost: Cost, trained: bool, through: bool, again: str = "none", precision: str = "") -> Work:
        """Forward and backward of one part; `through`: gradients pass it."""
        products, mixing, moved, traffic = AGAIN[again]
        through = through or trained
        gpu = self.job.gpu
        return Work(
            products=cost.products * (1 + products + through + trained) / self.product_rate(precision),
            mixing=cost.mixing * (1 + mixing + MIXING_BACK * through) / (gpu.bf16 * self.of.mixing),
            moved=cost.moved * (1 + moved + MOVED_BACK * through) / (gpu.bandwidth * self.of.memory),
            tensor=self.exchange(cost.exchanged) * (1 + traffic + through),
        )

    def product_rate(self, precision: str) -> float:
        """FLOP/s of products with weights."""
        gpu = self.job.gpu
        eighth = (precision or self.job.precision).startswith("fp8") and gpu.fp8
        return gpu.fp8 * self.of.products_fp8 if eighth else gpu.bf16 * self.of.products_bf16  # type: ignore[operator]

    def exchange(self, bytes_: float) -> float:
        """Exposed seconds of summing so many bytes over the tensor-parallel group."""
        tp = self.job.parallel.tp
        exposed = 1 / tp if self.job.tp_overlap else 1.0
        return 2 * exposed * self.ring(bytes_, tp, 1)

    def ring(self, bytes_: float, ranks: int, apart: int) -> float:
        """Seconds to gather (or sum and scatter) so many bytes over `ranks` processes that stand `apart`.

        Those on one machine fetch together what the other machines hold, each through its own adapter.
        """
        gpu = self.job.gpu
        near = min(ranks, max(1, gpu.per_node // apart))
        inside = bytes_ * (near - 1) / near / gpu.link
        outside = bytes_ * (ranks - near) / ranks / (near * gpu.network)
        return max(inside, outside) / self.of.links


def step_time(job: Job, of: Constants | None = None) -> StepTime:
    """Seconds of a step on the slowest rank, by cause."""
    run = Runner(job, of or constants())
    stages = _stages(run)
    slowest = max(stages, key=lambda stage: stage[0].total)
    work, weights = slowest
    steps = work.times(job.micro_batches)
    waiting = sum(each.total for each, _ in stages) - work.total
    return StepTime(
        products=steps.products,
        mixing=steps.mixing,
        moved=steps.moved,
        tower=_tower(run),
        tensor=steps.tensor,
        pipeline=_sends(run),
        data=_data(run, work, weights),
        bubble=waiting / job.parallel.vp,
        update=_update(run, weights),
        loading=0.0,
    )


def layer_counts(job: Job) -> list[int]:
    """Decoder layers of each pipeline stage."""
    parallel, layers = job.parallel, len(job.pieces.layers)
    fixed = {0: parallel.first_stage_layers, parallel.pp - 1: parallel.last_stage_layers}
    fixed = {stage: count for stage, count in fixed.items() if count}
    rest = layers - sum(fixed.values())
    between = parallel.pp - len(fixed)
    return [fixed.get(stage) or math.ceil(rest / between) for stage in range(parallel.pp)]


def _stages(run: Runner) -> list[tuple[Work, float]]:
    """Of each pipeline stage: its work on a micro-batch, and its trained weights."""
    job, pieces = run.job, run.job.pieces
    trained, through = "decoder" in job.train, bool(job.train)
    layers = [run.work(cost, trained, through, job.recompute) for cost in pieces.layers]
    ends = {
        0: [(run.work(pieces.embedding, trained, False, precision="bf16"), pieces.embedding.weights)],
        job.parallel.pp - 1: [],
    }
    ends[job.parallel.pp - 1].append((run.work(pieces.head, trained, through, precision="bf16"), pieces.head.weights))
    out, start = [], 0
    for stage, count in enumerate(layer_counts(job)):
        mine = [*zip(layers[start : start + count], (cost.weights for cost in pieces.layers[start : start + count])),
                *ends.get(stage, [])]  # fmt: skip
        start += count
        out.append((_sum(work for work, _ in mine), float(trained * sum(weights for _, weights in mine))))
    return out


def _sum(works: Iterable[Work]) -> Work:
    return sum(works, Work())


def _tower(run: Runner) -> float:
    """Encoder and connector of this process' share of the global batch's tiles, and a teacher's pass over them."""
    job, pieces = run.job, run.job.pieces
    share = math.ceil(job.load.packs * job.load.of.tiles * job.parallel.tp / job.world)
    learns = [_learns(cost, job.train) for cost in pieces.tower]
    works = [
        run.work(cost, trained, any(learns[:place]), job.recompute if any(learns[: place + 1]) else "none", "bf16")
        for place, (cost, trained) in enumerate(zip(pieces.tower, learns, strict=True))
    ]
    watched = [run.work(cost, False, False, precision="bf16") for cost in pieces.teacher]
    return share * _sum([*works, *watched]).total


def _learns(cost: Cost, train: Sequence[str]) -> bool:
    return cost.part in train or axis_of(cost.part) in train


def _sends(run: Runner) -> float:
    """Exposed seconds of what pipeline stages send each other: there and back, unless interleaving overlaps it."""
    job = run.job
    if job.parallel.pp == 1 or job.parallel.vp > 1:
        return 0.0
    near = job.world <= job.gpu.per_node
    return 2 * job.micro_batches * job.pieces.hidden / ((job.gpu.link if near else job.gpu.network) * run.of.links)


def _data(run: Runner, work: Work, weights: float) -> float:
    """Exposed seconds of gradient sums and weight gathers."""
    job = run.job
    ranks = job.dp * job.parallel.cp
    times = job.micro_batches if job.fsdp > 1 else 1
    gather = (2 if job.fsdp > 1 else 1) * run.ring(WEIGHT * weights, ranks, job.parallel.tp)
    added = run.ring(GRADIENT * weights, ranks, job.parallel.tp)
    hidden = work.total if job.overlap else 0.0
    return times * max(0.0, gather + added - hidden)


def _update(run: Runner, weights: float) -> float:
    shard = weights / (job.fsdp if (job := run.job).fsdp > 1 else job.dp * job.parallel.cp)
    return shard * OPTIMIZER_BYTES / (job.gpu.bandwidth * run.of.memory)
