"""Seconds of a part's passes: its operations and bytes over rates. Loads no torch.

A rate is a peak of the data sheet times the part of it that is reached. These parts are the planner's only fitted
numbers (constants.yaml); all else is counted, published or measured, as said beside it:

- a trained product runs three times (forward, gradient of the input, gradient of the weights), attention's two products
  three and a half (FlashAttention does seven for the two), what moves bytes three; recomputation adds a forward pass;
- products run at the rate that the power limit allows: it goes with the square root of the watts for each FLOP/s of the
  peak. A cube root would be that of clocks whose voltage goes with them, a first power that of a voltage at its floor;
- FP8 reads each operand twice (for its greatest value, and to convert it), and writes it as it is and transposed;
- a sum over t processes moves 2 (t - 1) / t of the tensor each way (arXiv 2104.04473, section 3.2); where
  that is overlapped with products, it goes in t rounds, of which one has no product beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import yaml

from ..costs import Cost
from .contracts import Attention, Job

MEMORY = 0.9  # of the bandwidth: a copy on an H200 reads and writes 4.3 TB/s of 4.8
POWER = 0.5
# Of an H100's peak: FlashAttention-2 reaches 35 %, and what came after it is 1.5 to 2 times as fast: the abstract of
# FlashAttention-3, arXiv 2407.08608.
ATTENTION: dict[Attention, float] = {"fused": 0.6, "torch": 0.35}
WATTS = 700 / 989.4e12  # an H100's, for each FLOP/s of its peak
CONVERTED = 6  # bytes of an operand in FP8, 2 + 2 read, 1 + 1 written
ADDED = 8  # bytes of a number when a micro-batch's gradient is added, in float32, to those before
MIXING_BACK, MOVED_BACK = 2.5, 2.0  # backward pass over forward pass
# recomputation -> parts of the forward pass that run again: products, attention, moved bytes, traffic
AGAIN = {"none": (0, 0, 0, 0), "selective": (0, 1, 0, 0), "every_other": (0.5, 0, 1, 0.5), "full": (1, 1, 1, 1)}


@dataclasses.dataclass(frozen=True)
class Constants:
    """Fitted parts of peaks."""

    products_bf16: float
    products_fp8: float
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
        """One after the other."""
        return Work(
            self.products + other.products,
            self.mixing + other.mixing,
            self.moved + other.moved,
            self.tensor + other.tensor,
        )

    def times(self, count: float) -> Work:
        """So often."""
        return Work(count * self.products, count * self.mixing, count * self.moved, count * self.tensor)

    @property
    def total(self) -> float:
        """Seconds in all."""
        return self.products + self.mixing + self.moved + self.tensor


def together(works: Iterable[Work]) -> Work:
    """One after the other."""
    return sum(works, Work())


@dataclasses.dataclass(frozen=True)
class Runner:
    """What turns the costs of a job into seconds."""

    job: Job
    of: Constants

    def work(self, cost: Cost, trained: bool, through: bool, again: str = "none", precision: str = "") -> Work:
        """Forward and backward of one part for what its cost is of; `through`: gradients pass it.

        `precision` where it is not the job's: tables, the output layer and what only looks stay in bf16.
        """
        products, mixing, moved, traffic = AGAIN[again]
        through = through or trained
        bytes_ = cost.moved * (1 + moved + MOVED_BACK * through) + trained * ADDED * cost.weights
        bytes_ += self.in_fp8(precision) * CONVERTED * cost.operands * (1 + products + through) / 2
        return Work(
            products=cost.products * (1 + products + through + trained) / self.product_rate(precision),
            mixing=cost.mixing * (1 + mixing + MIXING_BACK * through) / self.mixing_rate,
            moved=bytes_ / (self.job.gpu.bandwidth * MEMORY),
            tensor=self.traffic(cost) * (1 + traffic + through),
        )

    def product_rate(self, precision: str = "") -> float:
        """FLOP/s of products with weights."""
        gpu = self.job.gpu
        if gpu.fp8 and self.in_fp8(precision):
            return self.powered * gpu.fp8 * self.of.products_fp8
        return self.powered * gpu.bf16 * self.of.products_bf16

    def in_fp8(self, precision: str = "") -> bool:
        """Whether products are."""
        return self.job.gpu.fp8 is not None and (precision or self.job.precision).startswith("fp8")

    @property
    def mixing_rate(self) -> float:
        """FLOP/s of attention."""
        return self.powered * self.job.gpu.bf16 * ATTENTION[self.job.attention]

    @property
    def powered(self) -> float:
        """The rate that the power limit leaves, over that of an H100 of 700 W."""
        gpu = self.job.gpu
        return float((gpu.watts / gpu.bf16 / WATTS) ** POWER)

    def traffic(self, cost: Cost) -> float:
        """Exposed seconds of a pass' sums over the tensor-parallel group, and of what context parallelism gathers."""
        parallel = self.job.parallel
        rounds = parallel.tp if self.job.tp_overlap else 1
        sums = 2 * self.ring(cost.exchanged, parallel.tp, 1) / rounds
        return sums + self.ring(cost.handed, parallel.cp, parallel.tp)

    def ring(self, bytes_: float, ranks: int, apart: int) -> float:
        """Seconds to gather (or sum and scatter) so many bytes over `ranks` processes that stand `apart`.

        Those on one machine fetch together what the other machines hold, each through its own adapter.
        """
        gpu = self.job.gpu
        near = min(ranks, max(1, gpu.per_node // apart))
        inside = bytes_ * (near - 1) / near / gpu.link
        outside = bytes_ * (ranks - near) / ranks / (near * gpu.network)
        return max(inside, outside) / self.of.links
