"""Who in a pipeline does what when: megatron-core's schedules, played through with given times. Loads no torch.

1F1B (arXiv 2104.04473, section 2.2.1) and its interleaved form (2.2.2), in the order in which megatron-core 0.16.1
works (`pipeline_parallel/schedules.py`): forward passes to warm up, then one forward and one backward, then what is
left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

Seconds = Sequence[Sequence[float]]  # of each pipeline stage, of each of its chunks


class Pass(NamedTuple):
    """One micro-batch through one chunk of a stage's layers."""

    chunk: int
    micro_batch: int
    backward: bool


@dataclasses.dataclass(frozen=True)
class Event:
    """A pass of a pipeline stage, from its start to its end in seconds."""

    stage: int
    of: Pass
    start: float
    end: float


def order(stages: int, chunks: int, micro_batches: int, stage: int) -> list[Pass]:
    """What a stage does, one pass after the other. Interleaved, `micro_batches` is a multiple of `stages`."""
    runs = _runs(stages, chunks, micro_batches)
    forward = [Pass(chunk, batch, False) for chunk, batch in runs]
    backward = [Pass(chunks - 1 - chunk, batch, True) for chunk, batch in runs]
    ahead = stages - 1 - stage if chunks == 1 else 2 * (stages - 1 - stage) + (chunks - 1) * stages
    ahead = min(ahead, len(runs))
    steady = [one for pair in zip(forward[ahead:], backward, strict=False) for one in pair]
    return [*forward[:ahead], *steady, *backward[len(runs) - ahead :]]


def _runs(stages: int, chunks: int, micro_batches: int) -> list[tuple[int, int]]:
    """(chunk, micro-batch) in the order of the forward passes: interleaved, `stages` of them go through all chunks."""
    group = stages if chunks > 1 else micro_batches
    starts = range(0, micro_batches, group)
    return [(c, b) for first in starts for c in range(chunks) for b in range(first, min(first + group, micro_batches))]


def play(forward: Seconds, backward: Seconds, micro_batches: int, send: float = 0.0) -> list[Event]:
    """Every pass of a step, by its start. A stage does one thing at a time, in its order, as soon as it can.

    `send`: seconds until the next stage has what one gives it.
    """
    stages, chunks = len(forward), len(forward[0])
    waiting = [iter(order(stages, chunks, micro_batches, stage)) for stage in range(stages)]
    heads, free = [next(each, None) for each in waiting], [0.0] * stages
    done: dict[tuple[int, Pass], float] = {}
    events = []
    while (found := _next(heads, done, free, chunks, send)) is not None:
        stage, of, start = found
        seconds = (backward if of.backward else forward)[stage][of.chunk]
        events.append(Event(stage, of, start, start + seconds))
        done[stage, of] = free[stage] = start + seconds
        heads[stage] = next(waiting[stage], None)
    return sorted(events, key=lambda event: (event.start, event.stage))


def _next(
    heads: Sequence[Pass | None], done: dict[tuple[int, Pass], float], free: Sequence[float], chunks: int, send: float
) -> tuple[int, Pass, float] | None:
    """A stage whose next pass has all it needs, and when it begins; None where all is done."""
    for stage, of in enumerate(heads):
        if of is None:
            continue
        needs = list(needed(stage, of, len(heads), chunks))
        if all(each in done for each in needs):
            come = [done[each] + (send if each[0] != stage else 0.0) for each in needs]
            return stage, of, max([free[stage], *come])
    if any(of is not None for of in heads):
        raise ValueError(f"a schedule that waits for itself: {heads}")
    return None


def needed(stage: int, of: Pass, stages: int, chunks: int) -> Iterator[tuple[int, Pass]]:
    """What has to be done before a pass, and by whom."""
    step = 1 if of.backward else -1
    if of.backward:
        yield stage, of._replace(backward=False)
    place = of.chunk * stages + stage + step  # among all stages' chunks, in the order of the layers
    if 0 <= place < stages * chunks:
        yield place % stages, of._replace(chunk=place // stages)


def total(events: Sequence[Event]) -> float:
    """Seconds from the first start to the last end."""
    return max(event.end for event in events)


def idle(events: Sequence[Event], stage: int) -> float:
    """Seconds of the whole that a stage does nothing."""
    return total(events) - sum(event.end - event.start for event in events if event.stage == stage)
