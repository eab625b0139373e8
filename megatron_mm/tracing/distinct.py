"""Which ranks of a job do different things. Arithmetic: loads no torch."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..data.build import StageData
    from ..planning.contracts import Load


def distinct_ranks(spec: StageData, world: int, load: Load | None = None) -> list[int]:
    """One rank, ascending, for everything different that a process of the stage may have to do on `world` of them.

    Every pipeline stage is something else: it has other layers, and keeps other micro-batches. Inside one two ranks
    are the same but for values where neither is at an edge. Along tensor parallelism the edges are the first and the
    last rank: heads and rows are equal shares, and what fills them up (the vocabulary's padding, dummy heads) stands
    last, as does the tile too many. Along data parallelism they are the first and the last replica, where the packs of
    `load` do not divide (or nothing is known of them): those left over go to the first ones. Ranks of context
    parallelism hold equal parts of every sequence: the first stands for all.
    """
    parallel = spec.stage.parallel
    dp = world // parallel.split
    even = load is not None and load.packs % dp == 0
    replicas = {0} if even else {0, dp - 1}
    edges = itertools.product(range(parallel.pp), sorted(replicas), sorted({0, parallel.tp - 1}))
    return [((stage * dp + replica) * parallel.cp) * parallel.tp + tp for stage, replica, tp in edges]


def pipeline_stage(spec: StageData, world: int, rank: int) -> int:
    """The pipeline stage of a rank: they are slowest in megatron-core's numbering."""
    return rank // (world // spec.stage.parallel.pp)
