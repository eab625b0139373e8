"""What the parts of a model cost one process, as their specs tell it: memory, operations, traffic. Loads no torch.

The planner adds these up. They say what our own layers do on plain torch (`backend/specs.py`), which is what a trace
walks through; Transformer Engine's keep a little less.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Cost:
    """One part on one process of its tensor-parallel group, for the rows it is asked about. Sizes are bytes.

    - weights: parameters that the process holds. part: what a stage can train by itself ("encoder.sam"), where that is
      not the axis
    - kept: what the forward pass leaves for the backward pass where the part is trained, its input counted once, by
      whoever reads it first; its weights are not. passing: the same where its weights are frozen and gradients pass
      through it. entrance: its input, which is all that is kept of it under full recomputation; 0 where that leaves it
      alone
    - spare: what it needs beside at one time at most, in either pass. alone: what it needs at one time at most, input
      and output included, where nothing is kept of it: as a frozen part of the tower
    - products: forward FLOPs of products with weights; entering: of them those whose input wants no gradient, whoever
      is trained. mixing: forward FLOPs of attention, as the kernel does them
    - moved: what all other operations read and write in the forward pass. operands: numbers that go into products and
      come out of them there, each of which FP8 converts in one of the passes
    - exchanged: the tensors that tensor parallelism sums (or gathers and scatters) in the forward pass, each counted
      whole. handed: keys and values that context parallelism gathers there
    """

    weights: int = 0
    kept: float = 0.0
    passing: float = 0.0
    spare: float = 0.0
    alone: float = 0.0
    products: float = 0.0
    entering: float = 0.0
    mixing: float = 0.0
    moved: float = 0.0
    exchanged: float = 0.0
    handed: float = 0.0
    operands: float = 0.0
    entrance: float = 0.0
    part: str = ""

    def __add__(self, other: Cost) -> Cost:
        """One after the other: all add up but `spare` and `alone`, whose greatest counts; the first's entrance."""
        return Cost(
            weights=self.weights + other.weights,
            kept=self.kept + other.kept,
            passing=self.passing + other.passing,
            spare=max(self.spare, other.spare),
            alone=max(self.alone, other.alone),
            products=self.products + other.products,
            entering=self.entering + other.entering,
            mixing=self.mixing + other.mixing,
            moved=self.moved + other.moved,
            exchanged=self.exchanged + other.exchanged,
            handed=self.handed + other.handed,
            operands=self.operands + other.operands,
            entrance=self.entrance or other.entrance,
            part=self.part,
        )

    def times(self, count: float) -> Cost:
        """Of `count` micro-batches or tiles together: the weights stay the same."""
        scaled = {f.name: count * getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in FIXED}
        return dataclasses.replace(self, **scaled)


FIXED = ("weights", "part")


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """One packed sequence of the whole model, before any split; `squares` of its samples' tokens, each by itself.

    tiles: in it. context: visual tokens (and tags) beside the sequence. pairs: of a position and a token of its
    sample's context.
    """

    positions: int
    samples: float
    squares: float
    tiles: float = 0
    visual: float = 0  # visual tokens in the sequence
    context: float = 0
    pairs: float = 0


@dataclasses.dataclass(frozen=True)
class Setting:
    """How it runs: the layout's sizes, and bytes of an activation's element (2 in bf16, 4 in fp32).

    composed_norms: RMSNorm as several operations, which torch makes of it on the CPU and so in a trace.
    """

    tp: int = 1
    cp: int = 1
    sequence_parallel: bool = False
    size: int = 2
    composed_norms: bool = False
