"""Which ranks of a job do different things. Arithmetic: loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..data.build import StageData


def distinct_ranks(spec: StageData, world: int) -> list[int]:
    """The ranks, ascending, that stand for all `world` of a stage: each pipeline stage's first, and the very last.

    Every pipeline stage is something else: it has other layers, and keeps other micro-batches. Inside one, the ranks
    hold equal shares of heads, rows and positions, and differ in values alone but for what does not divide. Of that,
    the first rank is at one edge and the last of all at the other, along every axis: what fills up the shares (the
    vocabulary's padding, dummy heads) stands with the last tensor-parallel rank, as does the tile too many; and packs
    too many go to the first replicas, so that the last one has fewest.
    """
    each = world // spec.stage.parallel.pp
    return sorted({*range(0, world, each), world - 1})


def pipeline_stage(spec: StageData, world: int, rank: int) -> int:
    """The pipeline stage of a rank: they are slowest in megatron-core's numbering."""
    return rank // (world // spec.stage.parallel.pp)
