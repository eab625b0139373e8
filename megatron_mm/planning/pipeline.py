"""Which layers a pipeline stage holds, and how many micro-batches it keeps at once. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import islice

from ..config import Parallel
from .timeline import order

Chunks = list[list[int]]  # of one stage: numbers of the decoder's layers, from 0, chunk by chunk


def held_layers(parallel: Parallel, layers: int) -> list[Chunks]:
    """Of each pipeline stage. What does not divide, `layout.require_stages` refuses; here the first get one more.

    The layers are dealt out chunk by chunk: stage after stage gets its first chunk, then its second.
    """
    sizes = [shares(size, parallel.vp) for size in stage_sizes(parallel, layers)]
    numbers: Iterator[int] = iter(range(layers))
    dealt = [[list(islice(numbers, size[chunk])) for size in sizes] for chunk in range(parallel.vp)]
    return [list(chunks) for chunks in zip(*dealt, strict=True)]


def stage_sizes(parallel: Parallel, layers: int) -> list[int]:
    """How many layers each pipeline stage holds: the first and the last what is said of them, the others alike."""
    told = {0: parallel.first_stage_layers, parallel.pp - 1: parallel.last_stage_layers}
    said = {stage: count for stage, count in told.items() if count is not None}
    others = iter(shares(layers - sum(said.values()), parallel.pp - len(said)))
    return [said[stage] if stage in said else next(others) for stage in range(parallel.pp)]


def shares(count: int, of: int) -> list[int]:
    """So many things over `of` places, as evenly as they go: the first have one more."""
    return [count // of + (place < count % of) for place in range(of)]


def in_flight(parallel: Parallel, micro_batches: int, stage: int) -> list[int]:
    """Of each chunk of a stage: micro-batches whose activations are kept when these are most, of all chunks together.

    That is at the end of a forward pass, in the order in which megatron-core works (timeline.py). It is reached in the
    first two rounds through the pipeline: what comes behind repeats them.
    """
    return _most_kept(parallel.pp, parallel.vp, min(micro_batches, 2 * parallel.pp), stage)


@cache
def _most_kept(stages: int, chunks: int, micro_batches: int, stage: int) -> list[int]:
    kept, most = [0] * chunks, [0] * chunks
    for each in order(stages, chunks, micro_batches, stage):
        kept[each.chunk] += -1 if each.backward else 1
        most = max(most, list(kept), key=sum)
    return most
